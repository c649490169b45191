"""Normalisation of VQA answers, exactly as the official evaluator does it, quirks included."""

from __future__ import annotations

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official pattern should also check the character before the period; a typo makes that part always true.
_PERIOD = re.compile(r"\.(?!\d)")
# The official code passes a flag of value 32 as the limit, so it removes at most that many periods.
_PERIODS_REMOVED = 32

_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

# A missing apostrophe is restored in these words. Not in the table: its, shes, im, ive, lets, id, well, …
_CONTRACTED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# In these words, one of the two apostrophes may be missing.
_CONTRACTED_TWICE = """
    couldn't've hadn't've mightn't've shouldn't've wouldn't've he'd've it'd've she'd've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've you'd've
"""


def _contractions() -> dict[str, str]:
    table = {word.replace("'", ""): word for word in _CONTRACTED.split()}
    for word in _CONTRACTED_TWICE.split():
        first, second = word.index("'"), word.rindex("'")
        table[word[:first] + word[first + 1 :]] = word
        table[word[:second] + word[second + 1 :]] = word
    table |= {"yall'll": "y'all'll", "y'allll": "y'all'll"}
    table |= {"yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've"}
    table |= {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
    table["somebody'd"] = "somebodyd"  # The official table takes this apostrophe away.
    return table


_CONTRACTIONS = _contractions()


def normalize_answer(text: str) -> str:
    """Punctuation, then numbers, articles and contractions: ``"The Two t-shirts."`` becomes ``"2 t shirts"``."""
    return normalize_words(normalize_punctuation(text))


@lru_cache(maxsize=1 << 16)  # datasets repeat their answers
def answer_form(text: str) -> str:
    """The form in which answers are compared: that of the official evaluator, with all commas removed.

    ``"Yes"``, ``"yes."`` and ``"yes"`` are ``"yes"``, ``"10,000"`` is ``"10000"``, ``"Two"`` is ``"2"``. An answer of
    only an article or punctuation (the choice ``"A"``) is kept in lower case, because the form must not be empty.
    """
    line = one_line(text)
    form = normalize_answer(line).replace(",", "")
    return form or normalize_punctuation(line).strip().lower() or line.lower()


def one_line(text: str) -> str:
    """Replace line feeds and tabs by blanks and strip the text: the evaluator's first step for every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize_punctuation(text: str) -> str:
    """Apply only the punctuation step.

    A punctuation character is deleted if it stands next to a space anywhere in ``text``, or if ``text`` holds
    digit-comma-digit; otherwise it becomes a space. Periods are deleted unless a digit follows.
    """
    grouped_number = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for character in _PUNCTUATION:
        delete = grouped_number or f"{character} " in text or f" {character}" in text
        result = result.replace(character, "" if delete else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def normalize_words(text: str) -> str:
    """Apply only the word step: lower case, number words to digits, no articles, contractions with apostrophe."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
