"""Damage for fuzz tests: bytes and JSON as they come from broken disks, other tools and hands."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from helpers.memory import at_most
from vlkit.errors import UserError

MORE = int(os.environ.get("VLKIT_FUZZ", "0"))
LEAST_MIB = 400
"""Any input may take this much memory: the largest image that is decoded has 256 MiB as RGB."""


def examples(count: int) -> Callable[[Any], Any]:
    """Settings of a test that looks at ``count`` examples, always the same ones unless more are asked for."""
    return settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def survives(body: Callable[[], Any]) -> None:
    """The body ends, or refuses its input in one line that can be printed; within the memory that is allowed."""
    with at_most(LEAST_MIB):
        try:
            body()
        except UserError as error:
            assert str(error) and "Traceback" not in str(error)


ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 3, 17, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")]),
    st.sampled_from(
        ["", " ", ".", "..", "/", "a\0b", "\ud83d", "caf\udce9", "[/b]", "x" * 5000, "../../etc/passwd", "\n"]
    ),
    st.sampled_from([[], {}, [[]], [None], [[[[]]]], {"": None}, {"kind": "lora"}, ["a", 1, None]]),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)
"""What a field may hold that should hold something else."""


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` with some of its bytes changed, lost, repeated or added; sometimes other bytes altogether."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 64))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "fill", "insert", "repeat", "other"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "fill":
            data[place : place + length] = bytes([draw(st.sampled_from([0, 0x7F, 0xFF]))]) * length
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=32))
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * draw(st.integers(1, 4))
        else:
            data = bytearray(draw(st.binary(max_size=200)))
    return bytes(data)


@st.composite
def odd_json(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value in which up to three places hold something odd, or are gone."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(ODD_VALUES)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.integers(0, 4)) == 0:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(ODD_VALUES))  # a later round may change it in place
    return value


def _places(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


ODD_CELLS = (
    "",
    " ",
    "-1",
    "0",
    "nan",
    "inf",
    "1e400",
    "9" * 40,
    "1e308",
    '"',
    'a"b',
    "\u2028",
    "x" * 140_000,
    "a\0b",
    "#",
)
"""What a cell or word of a table may hold that should hold something else."""


@st.composite
def odd_table(draw: st.DrawFn, text: str) -> bytes:
    """A table or list in which one to three cells or words hold something odd."""
    for _ in range(draw(st.integers(1, 3))):
        cells = re.split(r"([,;|\t\n #]+)", text)
        cells[2 * draw(st.integers(0, (len(cells) - 1) // 2))] = draw(st.sampled_from(ODD_CELLS))
        text = "".join(cells)
    return text.encode()
