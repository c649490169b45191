"""``python -m vlkit.adapters.published``: published files become adapter folders that load."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import parity
import vlkit
from helpers.parity_file import read_golden
from vlkit.adapters import ADAPTERS, adapter_options
from vlkit.adapters.published.__main__ import Config, main
from vlkit.adapters.published.convert import find_blocks, read_published
from vlkit.adapters.published.names import to_upstream
from vlkit.adapters.published.tables import TABLES
from vlkit.cli.config import parse, run
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import load_adapter
from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.tasks.retrieval.model import zero_shot

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
# Golden file -> its blocks: flavour, prefix of the published names, number of tensors.
BLOCKS = {
    "sherl_text": [("sherl/text", "", 27)],
    "sherl_mdetr": [("sherl/mdetr", "", 29)],
    "sherl_cnn_train": [("sherl/conv", "", 38)],
    "sherl_clip4clip_text": [("sherl/pooled", "", 22)],
    "sherl_clip4clip_video_gated": [("sherl/pooled", "", 23)],
    "sherl_clipvil_joint": [("sherl/gated", "side_block.", None)],
    "sherl_t5_encoder": [("sherl/t5", "", None)],
    "sherl_t5_decoder": [("sherl/t5", "", None)],
    "unipt_text": [("unipt/text", "", 28)],
    "unipt_cnn": [("unipt/conv", "", 45)],
    "unipt_clip4clip_text": [("unipt/pooled", "", 18)],
    "unipt_clipvil_joint": [("unipt/joint", "", None)],
    "unipt_mdetr_full": [("unipt/mdetr_decoder", "", None), ("unipt/mdetr_encoder", "", None)],
    "lst_t5_encoder": [("lst/t5", "", None)],
    "lst_t5_decoder": [("lst/t5", "", None)],
    "lst_clipvil_joint": [("lst/joint", "", None)],
    "vqt_vit": [("vqt", "", 1)],
    "synqt_vit": [("synqt", "synqt.", None)],
    "dtl_vit_plus": [("dtl", "", None)],
    "head_gpo": [("gpo", "", None)],
    "r2_temporal": [("r2/temporal", "", 26)],
    "r2_block": [("r2/block", "", 22)],
    "r2_full": [("r2", "", None)],
}


def published_file(name: str, folder: Path) -> Path:
    """The state dict of a golden file, as its authors would have saved it."""
    path = folder / f"{name}.safetensors"
    save_file(read_golden(GOLDEN / f"{name}.safetensors").part("weight."), path)
    return path


def convert(*words: object) -> None:
    main(parse(Config, [str(word) for word in words]))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_golden_files(name: str, tmp_path: Path) -> None:
    file, out = published_file(name, tmp_path), tmp_path / "out"
    convert(file, "--output", out)
    config, tensors = read_json(out / "vlkit_adapter.json"), load_file(out / "vlkit_adapter.safetensors")
    found = [(block.flavour, block.prefix, len(block.tensors)) for block in read_published(file)]
    assert [place[:2] for place in found] == [place[:2] for place in BLOCKS[name]]
    for (*_, count), (*_, expected) in zip(found, BLOCKS[name], strict=True):
        assert expected is None or count == expected
    assert len(tensors) == sum(count for *_, count in found) and config["task"] is None
    source = load_file(file)
    for block in read_published(file):  # each tensor is one of the file's, under its own name
        for own, tensor in block.tensors.items():
            assert torch.equal(tensor, source[block.prefix + to_upstream(block.flavour, own)])
            assert torch.equal(tensor, tensors[f"{block.prefix}{block.flavour.replace('/', '_')}.{own}"])
    for options in config["adapters"].values():
        if options["kind"] in ADAPTERS:
            adapter_options(options)
    with pytest.raises(UserError, match="holds published blocks without a base; convert them again"):
        load_adapter(out)


def test_every_flavour_is_covered() -> None:
    # The way out of LST's decoder, and CLIP-T5's visual embedding, are only in the golden file of the whole network.
    whole = {"lst/t5_out", "lst/clip_t5_visual"}
    assert {flavour for blocks in BLOCKS.values() for flavour, *_ in blocks} == set(TABLES) - whole


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sherl_text", {"handoff": "tokens", "flavour": "text", "init": "published"}),
        ("sherl_mdetr", {"handoff": "tokens", "flavour": "mdetr", "init": "published", "reduction": 2}),
        (
            "sherl_clip4clip_video_gated",
            {"handoff": "pooled", "init": "published", "reduction": 1, "base_gate": True},
        ),
        ("unipt_clip4clip_text", {"handoff": "pooled", "init": "published", "reduction": 2}),
        ("vqt_vit", {"queries": 2}),
        ("synqt_vit", {"queries": 3, "hidden": 6, "attention_hidden": 4, "init": "published"}),
        ("dtl_vit_plus", {"rank": 2}),
        ("lst_t5_encoder", {"init": "published", "reduction": 2, "keep": (1, 2, 3)}),
        ("lst_clipvil_joint", {"init": "published", "reduction": 2, "keep": (0, 1, 2, 3), "bias": False}),
    ],
)
def test_options_follow_from_the_tensors(name: str, options: dict, tmp_path: Path) -> None:
    (block,) = read_published(published_file(name, tmp_path))
    if name == "sherl_text":  # H = 16 of D = 24: no whole number divides so
        assert "reduction" not in block.options()
    assert block.options() == {"kind": name.split("_")[0], **options}


def published_model(options: object, prefixes: dict[str, str]) -> tuple[object, dict[str, Tensor]]:
    """A model on the tiny base with random adapters, and its tensors under published names."""
    base = load_base("tiny")
    model, tensors = zero_shot(base), {}
    flavour = f"{options.kind}/pooled"
    for tower in ("image", "text"):
        with torch.random.fork_rng():
            torch.manual_seed(len(tower))
            encoder = options.build(getattr(base, tower))
        setattr(model, tower, encoder.eval())
        for name, tensor in encoder.adapter.state_dict().items():
            tensors[f"module.{prefixes[tower]}{to_upstream(flavour, name)}"] = tensor
        tensors[f"{tower}.backbone.weight"] = torch.zeros(2)
    return model, tensors


@pytest.mark.parametrize("kind", ["sherl", "unipt"])
def test_a_published_model_on_its_base_loads_and_embeds(kind: str, tmp_path: Path) -> None:
    more = {"base_gate": True, "reduction": 2} if kind == "sherl" else {"reduction": 4}
    options = ADAPTERS[kind](handoff="pooled", init="published", **more)
    model, tensors = published_model(options, {"image": "clip.visual.side.", "text": "clip.side."})
    save_file(tensors, tmp_path / "model.safetensors")
    convert(tmp_path / "model.safetensors", "--base", "tiny", "--output", tmp_path / "out")
    loaded = vlkit.load(tmp_path / "out", device="cpu")
    ids = load_base("tiny").tokenize(["a red cat", "two dogs on a mat"])
    with torch.no_grad():
        expected = model.embed_texts(ids)
    torch.testing.assert_close(torch.as_tensor(loaded.embed_texts(["a red cat", "two dogs on a mat"])), expected)


# --- wrong input ------------------------------------------------------------------------------------------------------


def refuse(*words: object) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        run(main, Config, [str(word) for word in words])
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("error:")]
    assert ended.value.code == 2 and "Traceback" not in said.getvalue()
    return line


def test_what_is_no_published_file_is_refused(tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    assert "none.safetensors: no such file" in refuse(tmp_path / "none.safetensors", *out)
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}q\x00.")
    assert "published checkpoints are pickles, convert them with" in refuse(tmp_path / "weights.pth", *out)
    save_file({"layer.0.weight": torch.zeros(2), "layer.1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    line = refuse(tmp_path / "other.safetensors", *out)
    assert "no block of a known flavour (sherl/text, " in line and "named layer.0, layer.1" in line
    save_file({}, tmp_path / "empty.safetensors")
    assert "named (there are none)" in refuse(tmp_path / "empty.safetensors", *out)
    assert not (tmp_path / "out").exists()


def test_half_a_block_is_no_block(tmp_path: Path) -> None:
    tensors = read_golden(GOLDEN / "sherl_text.safetensors").part("weight.")
    assert find_blocks({name: tensor for name, tensor in tensors.items() if not name.startswith("fc_out")}) == []


def test_a_base_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = published_file("sherl_clip4clip_text", tmp_path)
    line = refuse(file, "--base", "tiny", "--output", tmp_path / "out")
    assert "no block in the file fits the image tower of tiny: sherl/pooled (its shapes differ)" in line


def test_a_finished_folder_is_not_written_over(tmp_path: Path) -> None:
    file = published_file("sherl_text", tmp_path)
    convert(file, "--output", tmp_path / "out")
    assert "already holds an adapter" in refuse(file, "--output", tmp_path / "out")


def test_golden_blocks_still_pass_parity() -> None:
    assert parity.check_file(GOLDEN / "sherl_text.safetensors").problems == []
