"""Adapters merged into their base, loaded by open_clip itself; methods that cannot be merged."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from helpers.contrastive import save_contrastive
from helpers.export import ARCH, add_small_architecture, saved_adapter
from helpers.scripts import call, refuse
from vlkit.errors import UserError
from vlkit.export.open_clip import export_open_clip
from vlkit.export.source import open_source
from vlkit.tasks.two_tower import HeadOptions


@pytest.fixture(scope="module", autouse=True)
def architecture(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_small_architecture(tmp_path_factory.mktemp("architecture"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lora", {}), ("lora", {"targets": "qv", "rank": 2}), ("bitfit", {}), ("linear", {})],
    ids=["lora", "lora qv", "bitfit", "linear"],
)
def test_open_clip_gives_the_adapters_embeddings(kind: str, options: dict, tmp_path: Path) -> None:
    source = open_source(saved_adapter(tmp_path / "run", ARCH, kind, **options))
    pixels, ids = torch.randn(2, 3, 32, 32), source.base.tokenize(["a red dog", "a"])
    with torch.no_grad():
        images, texts, scale, _ = source.model(pixels, ids)
    assert export_open_clip(source, tmp_path / "out") < 1e-5
    file = tmp_path / "out" / "open_clip_model.safetensors"
    model = open_clip.create_model(ARCH, pretrained=str(file)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels, normalize=True), images, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encode_text(ids, normalize=True), texts, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.logit_scale.exp(), scale)
    whole = open_clip.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_part_of_the_adapter_is_written(tmp_path: Path) -> None:
    """LiNeS: the first block's update is scaled by 0.3, the last one's stays."""
    run = saved_adapter(tmp_path / "run", ARCH, "bitfit")

    def written(name: str, *words: object) -> dict[str, torch.Tensor]:
        call("tasks/export.py", "--model", run, "--to", "open_clip", "--output", tmp_path / name, *words)
        return load_file(tmp_path / name / "open_clip_model.safetensors")

    base, whole, part = (
        written(name, *words)
        for name, words in (("base", ("--mix", 0)), ("whole", ()), ("part", ("--mix", 0.3, "--mix_beta", 0.7)))
    )
    blocks = sorted(name for name in whole if "transformer.resblocks" in name and name.endswith("mlp.c_proj.bias"))
    assert len(blocks) >= 4
    for tower in ("visual.transformer", "transformer"):
        own = [name for name in blocks if name.startswith(tower + ".")]
        for name, factor in ((own[0], 0.3), (own[-1], 1.0)):
            torch.testing.assert_close(
                part[name] - base[name], factor * (whole[name] - base[name]), atol=1e-6, rtol=1e-4
            )


def test_a_method_with_modules_beside_the_base_is_refused(tmp_path: Path) -> None:
    run, output = saved_adapter(tmp_path / "run", ARCH, "sherl"), tmp_path / "out"
    found = refuse("tasks/export.py", "--model", run, "--to", "open_clip", "--output", output)
    assert "sherl adds modules beside the base" in found and "linear, bitfit" in found and not output.exists()
    pooled = open_source(saved_adapter(tmp_path / "gpo", ARCH, "linear", HeadOptions(pool="gpo")))
    with pytest.raises(UserError, match=r"heads pool by gpo, which open_clip cannot; use --to onnx"):
        export_open_clip(pooled, output)
    save_contrastive(tmp_path / "clip", "clip")
    other = open_source(saved_adapter(tmp_path / "hf", f"hf:{tmp_path / 'clip'}", "linear"))
    with pytest.raises(UserError, match="is none of open_clip's architectures"):
        export_open_clip(other, output)


def test_the_script_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_adapter(tmp_path / "run", ARCH, "bitfit", HeadOptions(projection=False))
    call("tasks/export.py", "--model", run, "--to", "open_clip", "--output", tmp_path / "out")
    said = capsys.readouterr().out
    assert "open_clip: largest difference from the adapter's embeddings" in said and "written to" in said
