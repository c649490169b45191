"""The catalog of architectures: complete, made of shapes alone, and true."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import _build_text_tower, _build_vision_tower

from helpers.export import ARCH
from vlkit.encoders.catalog import STAGED, catalog, judge_text, judge_vision
from vlkit.encoders.stage import stage_text, stage_vision


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What ``python -m vlkit.encoders --json FILE`` writes."""
    path = tmp_path_factory.mktemp("catalog") / "encoders.json"
    command = [sys.executable, "-m", "vlkit.encoders", "--json", str(path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
    assert "open_clip architectures are staged on both sides" in done.stdout
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_architecture_and_text_family_is_listed(listing: list[dict[str, str]]) -> None:
    names = [row["name"] for row in listing]
    assert len(names) == len(set(names))
    assert set(open_clip.list_models()) - {ARCH} <= set(names)  # the one that other tests add
    assert {"t5-base", "google/flan-t5-base", "google/mt5-base", "bert-base-uncased", "roberta-base"} <= set(names)
    assert all(row["vision"] and row["text"] for row in listing)


def test_nine_in_ten_are_staged_on_both_sides(listing: list[dict[str, str]]) -> None:
    pairs = [row for row in listing if row["library"] == "open_clip"]
    assert sum(row["vision"] == row["text"] == STAGED for row in pairs) >= 0.9 * len(pairs)
    assert all(row["text"] == STAGED for row in listing if row["library"] == "transformers")
    assert {row["name"]: row["vision"] for row in listing if row["name"].startswith("hf:")} == {
        "hf:openai/clip-vit-base-patch32": STAGED,
        "hf:google/siglip2-base-patch16-224": STAGED,
    }


def test_judging_makes_no_weights() -> None:
    config = open_clip.get_model_config("ViT-bigG-14")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert judge_vision(config) == judge_text(config) == STAGED
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500 * 1024, "the towers would take ten million KiB"


def test_what_cannot_be_staged_is_not_called_staged() -> None:
    config = open_clip.get_model_config("convnext_tiny")
    vision = {**config["vision_cfg"], "timm_model_name": "test_nfnet"}
    assert "NormFreeNet: cannot be staged" in judge_vision({**config, "vision_cfg": vision})
    vision = {**config["vision_cfg"], "timm_model_name": "no_such_trunk"}
    assert "cannot build it" in judge_vision({**config, "vision_cfg": vision})
    text = {**config["text_cfg"], "hf_model_name": "nobody/nothing"}
    assert "nobody/nothing" in judge_text({**config, "text_cfg": text})
    text = {**config["text_cfg"], "pool_type": "none"}
    assert "no pooled embedding" in judge_text({**config, "text_cfg": text})


def test_a_row_does_not_depend_on_the_rows_before_it() -> None:
    first = next(catalog())
    assert first["name"] == open_clip.list_models()[0]
    assert first == next(catalog())


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "MobileCLIP2-S0", "vit_relpos_medium_patch16_cls_224"])
def test_a_real_architecture_called_staged_is_equal_to_the_library(name: str) -> None:
    """One light member per kind; ``test_encoders.py`` goes through the families in depth."""
    config = open_clip.get_model_config(name)
    assert judge_vision(config) == judge_text(config) == STAGED
    torch.manual_seed(0)
    vision = _build_vision_tower(config["embed_dim"], config["vision_cfg"]).eval()
    text = _build_text_tower(config["embed_dim"], config["text_cfg"]).eval()
    size = config["vision_cfg"]["image_size"]
    ids = torch.randint(1, 49000, (1, 77))
    ids[0, 9], ids[0, 10:] = 49407, 0
    with torch.no_grad():
        for model, encoder, x in (
            (vision, stage_vision(vision), torch.randn(1, 3, size, size)),
            (text, stage_text(text), ids),
        ):
            torch.testing.assert_close(encoder(x), model(x), rtol=1e-5, atol=1e-5)
