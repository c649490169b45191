"""Help texts of all scripts: every flag has one, and it is written in the words of the field."""

from __future__ import annotations

import re
from itertools import zip_longest

import pytest

from helpers.scripts import ROOT, load_script
from vlkit.cli.flags import Flag, kind_fields, walk

SCRIPTS = [
    path.relative_to(ROOT).as_posix()
    for folder in ("tasks", "data_prep")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "Config" in path.read_text(encoding="utf-8")
]
WRONG_WORDS = re.compile(r"^Of |\bpictures?\b|\bmend|kept for backward", re.IGNORECASE)


def flags_of(config_class: type) -> dict[str, Flag]:
    """Every flag of a config class, with the options of every kind."""
    choices = {name: list(kinds) for name, kinds in kind_fields(config_class).items()}
    found: dict[str, Flag] = {}
    for row in zip_longest(*choices.values()):
        chosen = {name: kind or choices[name][0] for name, kind in zip(choices, row, strict=True)}
        for flag in walk(config_class, chosen):
            found[f"{flag.name} of {chosen.get(flag.name.partition('.')[0], '')}"] = flag
    return found or {flag.name: flag for flag in walk(config_class, {})}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_a_help_text_in_plain_words(script):
    flags = flags_of(load_script(script).Config)
    assert flags
    assert [name for name, flag in flags.items() if not flag.help] == []
    assert [(name, flag.help) for name, flag in flags.items() if WRONG_WORDS.search(flag.help)] == []


def test_the_wrong_words_are_found():
    wrong = ["Of the image: its width.", "A picture file.", "Mend the file.", "Bytes kept for backward."]
    assert all(WRONG_WORDS.search(text) for text in wrong)
    assert not WRONG_WORDS.search("Number of images; offline. Recommended.")
