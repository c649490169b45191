"""Seeds of random directions as a pure function of where they are used, so that processes and resumed runs agree."""

from __future__ import annotations

import hashlib


def seed_of(*parts: object) -> int:
    """A seed for a generator from any values with a stable text: ``seed_of(run_seed, step, name)``."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # generators take 63 bits
