"""``--choose_mix``: the part of the adapter that is best on the validation split is kept, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vlkit
from helpers.export import add_small_architecture
from vlkit.adapters import ADAPTERS
from vlkit.adapters.mix import Mix, Trained, side_mix
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import copy_trained, load_trained, save_adapter
from vlkit.engine.choose_mix import MixChoice
from vlkit.engine.state import FitResult
from vlkit.tasks.retrieval.model import adapter_config, build_model
from vlkit.tasks.two_tower import HeadOptions


@pytest.mark.parametrize("kind", ["sherl", "lora", "full"])
@pytest.mark.parametrize("wanted", [1.0, 0.5])
def test_the_best_part_is_kept_saved_and_loaded(
    kind: str, wanted: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = add_small_architecture(tmp_path, monkeypatch)
    base, options, head = load_base(name), ADAPTERS[kind](), HeadOptions()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(base, options, head).eval()
    start, ids = copy.deepcopy(model), base.tokenize(["a photo of a dog", "a"])
    lines: list[dict[str, Any]] = []
    run: Any = SimpleNamespace(fabric=SimpleNamespace(broadcast=lambda x: x), log=lambda **line: lines.append(line))
    choice = MixChoice(run, model)
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    trained = copy_trained(model)

    @torch.no_grad()
    def embed(part: float) -> torch.Tensor:
        other = copy.deepcopy(start)
        load_trained(other, Trained(trained, Mix(part)))
        return other.embed_texts(ids)

    target = embed(wanted)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        return {"rsum": -float((model.embed_texts(ids) - target).abs().sum())}

    found = choice.choose(FitResult(evaluate(), 1, 1, 1.0, 1.0, 0), evaluate, "rsum")
    assert (found.mix, found.metrics["rsum"]) == (wanted, pytest.approx(0, abs=1e-5))
    assert [line["mix"] for line in lines] == [0.75, 0.5, 0.25]
    config = adapter_config(base, options, head, found.metrics) | {"mix": side_mix(model)}
    save_adapter(tmp_path / "run", model, config)
    loaded = vlkit.load(tmp_path / "run", device="cpu")
    torch.testing.assert_close(torch.from_numpy(loaded.embed_texts(["a photo of a dog", "a"])), target)
    assert float((embed(1.0) - embed(0.5)).abs().max()) > 1e-4
