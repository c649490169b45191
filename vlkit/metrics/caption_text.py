"""Words of a caption for its metrics: an approximation, without Java, of the tokenizer of the COCO caption evaluation.

Lower case; punctuation is dropped; contractions and possessives are split as in the Penn Treebank (``don't`` -> ``do
n't``, ``dog's`` -> ``dog 's``, ``cannot`` -> ``can not``); numbers and hyphenated words stay whole. Where the two
tokenizers differ, the figures do so in the second decimal.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\d+(?:[.,:/]\d+)*(?:-?\w+)*|\w+(?:[-.]\w+)*(?:'\w+)*|[&$%#@+*=]", re.UNICODE)
_NEGATED = re.compile(r"(\w+)(n't)")
_JOINED = re.compile(r"(can)(not)|(gon|wan)(na)|(got)(ta)|(lem|gim)(me)|(d')(ye|you)")
_SUFFIX = re.compile(r"(\w[\w.-]*)('(?:s|re|ve|ll|d|m))")


def caption_words(text: str) -> list[str]:
    """The words of a caption; empty if it has none."""
    words: list[str] = []
    for word in _WORD.findall(text.lower().replace("\u2019", "'")):
        match = _JOINED.fullmatch(word) or _NEGATED.fullmatch(word) or _SUFFIX.fullmatch(word)
        if match:
            words += filter(None, match.groups())
        else:
            words += [part for part in re.split(r"'", word) if part] if "'" in word else [word]
    return words
