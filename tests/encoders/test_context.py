"""``context_length``: text towers with resized position embeddings, and those that refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vlkit
from helpers import tiny
from helpers.contrastive import save_contrastive
from helpers.export import add_small_architecture
from helpers.words import save_words
from vlkit.adapters import ADAPTERS
from vlkit.encoders import hub
from vlkit.encoders.context import resized
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import save_adapter
from vlkit.errors import UserError
from vlkit.tasks.retrieval.model import adapter_config, build_model
from vlkit.tasks.two_tower import HeadOptions

LONG = "a red dog " * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


def test_positions_are_cut_or_interpolated() -> None:
    positions = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
    assert resized(positions, 2, causal=True).tolist() == [[0.0], [2.0]]
    assert resized(positions, 2, causal=False).tolist() == [[1.0], [5.0]]
    assert resized(positions, 8, causal=True)[:, 0].tolist() == [0.0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.0]


@pytest.mark.parametrize("kind", ["tiny", "open_clip", "clip", "siglip"])
def test_texts_of_another_length(kind: str, tmp_path: Path) -> None:
    if kind in ("clip", "siglip"):
        save_contrastive(tmp_path, kind)
    name = {"tiny": "tiny", "open_clip": add_small_architecture(tmp_path)}.get(kind, f"hf:{tmp_path}")
    own = load_base(name)
    limit = own.tokenize.limit
    for length in (limit // 2, 2 * limit):
        base = load_base(name, context_length=length)
        ids = base.tokenize([LONG, "a dog"])
        assert ids.shape == (2, length) and base.tokenize.limit == length
        assert int(base.text.real(ids)[0].sum()) == min(length, own.tokenize.lengths([LONG])[0])
        assert base.text(base.text.trim(ids)).shape == (2, base.text.out_dim)
        assert base.identity["text"]["context_length"] == length
        assert base.identity["text"]["fingerprint"] != own.identity["text"]["fingerprint"]
        assert base.identity["image"] == own.identity["image"]
        if length < limit and kind != "siglip":
            expected = own.text(own.tokenize(["a dog"]))
            torch.testing.assert_close(base.text(ids[1:]), expected, rtol=1e-5, atol=1e-5)
    # What the last position sees must depend on what stands beyond the old end.
    changed = ids[:1].clone()
    changed[0, limit + 1] = 6
    assert not torch.allclose(base.text(ids[:1]), base.text(changed))


def test_a_saved_adapter_repeats_it(tmp_path: Path) -> None:
    base = load_base("tiny", context_length=80)
    linear, head = ADAPTERS["linear"](), HeadOptions()
    save_adapter(tmp_path, build_model(base, linear, head), adapter_config(base, linear, head, {}))
    config = json.loads((tmp_path / "vlkit_adapter.json").read_text())
    assert config["base"]["text"]["context_length"] == 80
    found = vlkit.load(tmp_path, device="cpu").embed_texts([LONG[:200]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(base.text(base.tokenize([LONG[:200]])), dim=-1)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)
    config["base"]["text"]["context_length"] = 10**9
    (tmp_path / "vlkit_adapter.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"base\.text\.context_length"):
        vlkit.load(tmp_path, device="cpu")


def test_towers_that_do_not_allow_it(tmp_path: Path) -> None:
    tiny.tiny_bert().save_pretrained(tmp_path)
    save_words(tmp_path)
    pair = f"timm:test_efficientnet:random+hf:{tmp_path}"
    assert load_base(pair, context_length=20).tokenize([LONG]).shape == (1, 20)
    with pytest.raises(UserError, match=r"context length 33: the text tower of .* has 32 positions"):
        load_base(pair, context_length=33)
    with pytest.raises(UserError, match="context length 2: must be at least 3"):
        load_base("tiny", context_length=2)
