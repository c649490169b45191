"""What determines the vectors of a model, as a text."""

from __future__ import annotations

import re

# A pipeline's identity: NAME on ARCH:WEIGHTS (hash of the base's weights and the adapter's).
_IDENTITY = re.compile(r".* on ([^\s:]+)(?::.*)? \(([0-9a-f]{16})\)", re.DOTALL)


def model_key(model_id: str) -> str:
    """The part of a model's identity that determines its vectors: architecture and fingerprint.

    A renamed adapter folder, or weights in another place, are still the same model. The architecture is included
    because the weights do not contain its activation functions. An identity of another form is compared as a whole.
    """
    found = _IDENTITY.fullmatch(model_id)
    return f"{found[1]} {found[2]}" if found else model_id
