"""A pre-training run in one go beside one that is stopped at its first checkpoint and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.scripts import call, load_script
from vlkit.cli.config import parse

TRAINING = "tasks/pretrain/train.py"


def assert_same_after_a_stop(words: tuple[object, ...], folder: Path, steps: int) -> None:
    """Both end with the same weights, in ``folder/whole`` and ``folder/cut``; ``steps``: done at the stop."""
    call(TRAINING, *words, "--output", folder / "whole")
    module = load_script(TRAINING)
    config = parse(module.Config, [str(word) for word in (*words, "--output", folder / "cut")])
    save = module.save

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    module.save = save_and_stop
    with pytest.raises(KeyboardInterrupt):
        module.main(config)
    assert json.loads((folder / "cut/metrics.json").read_text())["steps"] == steps
    module.save = save
    module.main(config)
    whole, cut = (load_file(folder / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
