"""XOR parity over a group of nodes: any one of n pieces can be made again from the others (RAID 5 in memory).

The content, padded with zeros, is cut into n shards, and each shard into n - 1 stripes, one for every other node. Node
r holds shard r, and the XOR of the stripes that the other shards have for it:

    piece r = shard r, parity r       parity r = XOR over j != r of the stripe of shard j for r

so that n nodes together hold n / (n - 1) of the content.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import numpy as np


def piece(content: bytes, node: int, nodes: int) -> bytes:
    """The shard and the parity that ``node`` holds.

    Args:
        content: any bytes.
        node: 0 ... ``nodes`` - 1.
        nodes: at least 2.
    """
    stripe = _stripe_bytes(len(content), nodes)
    padded = np.zeros(nodes * (nodes - 1) * stripe, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    shards = padded.reshape(nodes, nodes - 1, stripe)
    parity = _xor([shards[other, _place(other, node)] for other in range(nodes) if other != node])
    return shards[node].tobytes() + parity.tobytes()


def join(pieces: Mapping[int, bytes], nodes: int, length: int) -> bytes:
    """The content of ``length`` bytes from the pieces of all nodes, or of all but one.

    Raises:
        ValueError: more than one piece is missing, or a piece has another size.
    """
    stripe = _stripe_bytes(length, nodes)
    missing = sorted(set(range(nodes)) - set(pieces))
    wrong = [node for node, content in pieces.items() if len(content) != nodes * stripe or not 0 <= node < nodes]
    if len(missing) > 1 or wrong:
        raise ValueError(f"pieces {missing} are missing and {wrong} do not fit; one of {nodes} may be missing")
    shards = np.zeros((nodes, nodes - 1, stripe), np.uint8)
    parities = np.zeros((nodes, stripe), np.uint8)
    for node, content in pieces.items():
        stripes = np.frombuffer(content, np.uint8).reshape(nodes, stripe)
        shards[node], parities[node] = stripes[:-1], stripes[-1]
    for lost in missing:
        for node in pieces:
            others = [shards[other, _place(other, node)] for other in pieces if other != node]
            shards[lost, _place(lost, node)] = _xor([parities[node], *others])
    return shards.tobytes()[:length]


def _stripe_bytes(length: int, nodes: int) -> int:
    return -(-length // (nodes * (nodes - 1)))


def _place(shard: int, node: int) -> int:
    """Which stripe of ``shard`` is meant for ``node``."""
    return node if node < shard else node - 1


def _xor(arrays: list[np.ndarray]) -> np.ndarray:
    return reduce(np.bitwise_xor, arrays)
