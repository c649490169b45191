"""LoRA as a folder that peft itself loads into the library's model."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import normalize

from helpers.contrastive import save_contrastive
from helpers.export import add_small_architecture, saved_adapter
from vlkit.encoders import hub
from vlkit.encoders.load import build_random
from vlkit.errors import UserError
from vlkit.export.peft import export_peft
from vlkit.export.source import open_source
from vlkit.tasks.two_tower import HeadOptions


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_peft_loads_it_into_the_librarys_model(kind: str, tmp_path: Path) -> None:
    if kind == "open_clip":
        name, model = add_small_architecture(tmp_path), build_random("vlkit-test")
    else:
        model, name = save_contrastive(tmp_path / "base", kind), f"hf:{tmp_path / 'base'}"
    source = open_source(saved_adapter(tmp_path / "run", name, "lora", HeadOptions(projection=False), rank=3))
    pixels, ids = torch.randn(2, 3, 32, 32), source.base.tokenize(["a red dog", "a"])
    with torch.no_grad():
        images, texts, scale, _ = source.model(pixels, ids)
    assert export_peft(source, tmp_path / "out") < 1e-5
    loaded = PeftModel.from_pretrained(model, str(tmp_path / "out")).eval()
    with torch.no_grad():
        if kind == "open_clip":
            found = loaded.encode_image(pixels), loaded.encode_text(ids)
        else:
            found = (
                loaded.get_image_features(pixel_values=pixels).pooler_output,
                loaded.get_text_features(input_ids=ids).pooler_output,
            )
    for vectors, expected in zip(found, (images, texts), strict=True):
        torch.testing.assert_close(normalize(vectors, dim=-1), expected, rtol=1e-4, atol=1e-5)
    heads = load_file(tmp_path / "out" / "heads.safetensors")
    assert set(heads) == {"logit_scale", "logit_bias"} and heads["logit_scale"].exp() == pytest.approx(float(scale))


def test_heads_lie_beside_and_other_methods_are_refused(tmp_path: Path) -> None:
    name = add_small_architecture(tmp_path)
    assert name in open_clip.list_models()
    with_heads = open_source(saved_adapter(tmp_path / "heads", name, "lora"))
    assert export_peft(with_heads, tmp_path / "out") < 1e-5
    assert load_file(tmp_path / "out" / "heads.safetensors")["image_projection"].shape == (16, 16)
    for options, message in (({"targets": "qv"}, "use --to open_clip"), ({"freeze_a": True}, "use --to open_clip")):
        split = open_source(saved_adapter(tmp_path / str(options), name, "lora", **options))
        with pytest.raises(UserError, match=message):
            export_peft(split, tmp_path / "none")
    with pytest.raises(UserError, match="--to peft: bitfit is not a method of peft"):
        export_peft(open_source(saved_adapter(tmp_path / "bitfit", name, "bitfit")), tmp_path / "none")
    assert not (tmp_path / "none").exists()
