"""Rewrite a referring expression for the mirrored image."""

from __future__ import annotations

import re

_SWAPS = {"left": "right", "lft": "rt", "leftie": "rightie", "lefty": "righty", "l": "r", "west": "east"}
_SWAPS |= {new: old for old, new in _SWAPS.items()}
_ENDINGS = "|".join(("most", "hand", "side", "wards?", "ern(?:most)?", "er", "mose", "ish"))
_SIDE = re.compile(rf"(?<![\w'])({'|'.join(_SWAPS)})(?=(?:{_ENDINGS})?(?![\w']))", re.IGNORECASE)

_PLACES = "about above after at ahead away before behind below beneath beside between by in near next now over there"
_PLACES += " through under up with where here angle angled"
_UNCLEAR = re.compile(
    rf"\bright\s+(?:{'|'.join(_PLACES.split())})\b"  # "right behind" means "just behind"
    r"|\b(?:all|alright|is|are|that'?s)\s+right\b|\bleft\s*overs?\b|\bleft\s+(?:alone|behind|out|open|empty)\b"
    r"|o'?\s?clock|clockwise|\b\d{1,2}:\d\d\b",  # a clock's hands turn the other way
    re.IGNORECASE,
)


def mirrored(text: str) -> str | None:
    """The text for an image mirrored left to right: "left" and "right" (east and west, their short forms and
    compounds) are swapped, keeping their case.

    Returns:
        The new text, unchanged if it names no side. None if the mirrored text is uncertain: "right" may mean "just" or
        "correct", "left" may mean "remaining", and clock positions.
    """
    if _UNCLEAR.search(text):
        return None
    return _SIDE.sub(_swap, text)


def _swap(match: re.Match[str]) -> str:
    old, new = match[1], _SWAPS[match[1].lower()]
    if old.isupper() and (len(old) > 1 or not match.string.islower()):
        return new.upper()
    return new.capitalize() if old[0].isupper() else new
