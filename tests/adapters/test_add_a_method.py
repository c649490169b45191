"""The example of docs/add-a-method.md is a whole method: the code on the page is what runs here."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.towers import SPATIAL, TOWERS, build, train, view
from vlkit.adapters import trained_state
from vlkit.adapters.facts import kinds_with, one_of
from vlkit.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path_factory.mktemp("example") / "scalar_mix.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("scalar_mix", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("reads", ["pooled", "tokens"])
@pytest.mark.parametrize("tower", [tower for tower in TOWERS if tower not in SPATIAL])
def test_the_example_does_what_a_method_must(example: ModuleType, tower: str, reads: str) -> None:
    options, x = example.ScalarMixOptions(hidden=8), TOWERS[tower][1]()
    model = build(options, tower, reads)
    base = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(model(x).pooled, model.base(x), rtol=0, atol=3e-6)

    assert train(model, x, reads) == set()
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.base.state_dict().items())
    other = build(options, tower, reads, seed=7)
    other.load_state_dict(trained_state(model), strict=False)
    assert torch.equal(view(other, x, reads), view(model, x, reads))


def test_the_example_refuses_grids(example: ModuleType) -> None:
    others = one_of(kinds_with("fits_any_tower"))
    assert others.startswith("sherl, unipt, dtl, linear")
    with pytest.raises(UserError, match=f"kind scalar_mix: needs tokens of one width; use {others}"):
        build(example.ScalarMixOptions(), "resnet")
