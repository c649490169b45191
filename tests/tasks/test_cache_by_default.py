"""Which runs train from the tap cache although ``--cache`` was not given."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.scripts import load_script
from vlkit.cli.config import parse, to_yaml
from vlkit.errors import UserError

AUGMENTED = {
    "vqa": ("--data.augment", "crop"),
    "grounding": ("--data.flip", "true"),
    "video_retrieval": ("--sampling", "segment"),
}


def chosen(task: str, *words: str) -> bool | Path:
    return parse(load_script(f"tasks/{task}/train.py").Config, words).cache


@pytest.mark.parametrize("task", AUGMENTED)
def test_demo_data_are_cached_and_the_users_own_are_not(task: str, tmp_path: Path) -> None:
    assert chosen(task) is True
    assert chosen(task, "--cache", "false") is False
    assert chosen(task, "--cache", str(tmp_path)) == tmp_path
    assert chosen(task, "--data.root", str(tmp_path)) is False
    assert chosen(task, "--data.root", str(tmp_path), "--cache", "true") is True


@pytest.mark.parametrize("task", AUGMENTED)
def test_what_cannot_be_cached_trains_without_a_word(task: str) -> None:
    assert chosen(task, "--adapter.kind", "lora") is False
    assert chosen(task, *AUGMENTED[task]) is False
    with pytest.raises(UserError, match="taps cannot be stored"):
        chosen(task, *AUGMENTED[task], "--cache", "true")


def test_a_decoder_needs_every_step() -> None:
    assert chosen("vqa", "--head.kind", "generate") is False


def test_moments_are_always_cached_where_the_method_allows_it(tmp_path: Path) -> None:
    assert chosen("moment_retrieval") is True
    assert chosen("moment_retrieval", "--data.root", str(tmp_path)) is True
    assert chosen("moment_retrieval", "--adapter.kind", "lora") is False


@pytest.mark.parametrize("task", ["retrieval", "classification"])
def test_whole_steps_where_a_run_is_short(task: str) -> None:
    assert chosen(task) is False


def test_the_run_folder_states_the_choice() -> None:
    config = parse(load_script("tasks/vqa/train.py").Config, ())
    assert "\ncache: true\n" in to_yaml(config)
