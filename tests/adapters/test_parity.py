"""Golden files: vlkit equals the published modules, and ``tests/parity.py`` notices when it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import parity
from helpers.parity_file import Golden, compare, read_golden
from vlkit.adapters.published.names import TABLES, to_upstream, to_vlkit
from vlkit.adapters.sherl.blocks import RedundancyAggregator

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
FILES = {
    "blackvip_decoder",
    "blackvip_spsa",
    "dtl_vit_plus",
    "head_gpo",
    "loss_clip4clip",
    "loss_hinge_max",
    "loss_hinge_sum",
    "lst_clipvil_joint",
    "lst_t5_decoder",
    "lst_t5_encoder",
    "r2_block",
    "r2_full",
    "r2_temporal",
    "sherl_clip4clip_text",
    "sherl_clip4clip_video_gated",
    "sherl_clipvil_joint",
    "sherl_cnn_train",
    "sherl_mdetr",
    "sherl_t5_decoder",
    "sherl_t5_encoder",
    "sherl_text",
    "sherl_text_dead",
    "synqt_vit",
    "unipt_clip4clip_text",
    "unipt_clipvil_joint",
    "unipt_cnn",
    "unipt_mdetr_full",
    "unipt_text",
    "vqt_attention",
    "vqt_vit",
}


def test_every_golden_file_is_listed() -> None:
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_golden_file(name: str) -> None:
    report = parity.check_file(GOLDEN / f"{name}.safetensors")

    assert report.problems == []
    assert report.outputs < report.limit
    # A method that never back-propagates has no gradients to compare.
    assert (report.gradients is None) == name.startswith("blackvip")
    assert report.gradients is None or report.gradients < report.limit


def without_effect(golden: Golden) -> set[str]:
    """Weights that the output rightly does not depend on."""
    weights = golden.part("weight.")
    if golden.name == "blackvip_decoder":  # counters of a batch norm with a fixed momentum
        return {name for name in weights if name.endswith("num_batches_tracked")}
    if golden.name.startswith("unipt"):  # a softmax over candidates ignores what they share
        counters = {name for name in weights if name.endswith("num_batches_tracked")}
        return counters | {name for name in weights if "gate_layer" in name and name.endswith("bias")}
    if golden.name == "vqt_attention":  # and so does one over keys
        return {"key.bias"}
    if golden.about["method"] == "r2_tuning":
        keys = {name for name in weights if name.endswith((".k.bias", "v_map.bias"))}
        return keys | {name for name in weights if name.startswith("loss.")}  # a constant of the published loss
    if golden.name == "lst_clipvil_joint":
        return {name for name in weights if name.startswith("side_block") and name.endswith("key.bias")}
    if golden.name.startswith("lst_t5"):  # gates of dropped layers, and the frozen norm that only aux.backbone sees
        return {
            f"side_gate_params.{i}" for i in range(golden.config["layers"]) if i not in golden.config["side_layers"]
        }
    if golden.name == "sherl_text_dead":  # every layer weight is clipped to zero: only the guide is left
        guide = f"hor_block.{golden.config['taps'] - 1}."
        return {n for n in weights if n.startswith("guide_block") or (n.startswith("hor_block") and guide not in n)}
    if golden.training:  # batch statistics take the bias in front of the norm away
        biases = {name for name in weights if name.endswith(("conv.0.bias", "conv_out.0.bias"))}
        return biases | {name for name in weights if "running" in name or "num_batches" in name}
    return set()


@pytest.mark.parametrize("name", sorted(n for n in FILES - {"blackvip_spsa"} if not n.startswith(("loss", "synqt"))))
def test_every_weight_counts(name: str) -> None:
    """SynQT is left out: with 480 weights it takes too long, and the gradients of its file are checked."""
    golden = read_golden(GOLDEN / f"{name}.safetensors").double()
    case = parity.find_case(golden.about)
    trained = set(golden.part("weight.")) - set(golden.about.get("frozen_weights", ()))
    unmoved = set()
    with torch.no_grad():
        still = case(golden).output
        for key in trained:
            weight = golden.tensors[f"weight.{key}"]
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            tensors = {**golden.tensors, f"weight.{key}": weight + 1e-2 * noise}
            if float((case(replace(golden, tensors=tensors)).output - still).abs().max()) < 1e-8:
                unmoved.add(key)

    assert trained
    assert unmoved == without_effect(golden)


def changed(folder: Path, name: str, change: Callable[[dict[str, Tensor], dict], None]) -> Path:
    """Copy a golden file to ``folder`` with a change to its tensors or its JSON."""
    golden = read_golden(GOLDEN / f"{name}.safetensors")
    tensors, about = dict(golden.tensors), json.loads(json.dumps(golden.about))
    change(tensors, about)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(about))
    return folder / f"{name}.safetensors"


def scale(key: str, factor: float) -> Callable[[dict[str, Tensor], dict], None]:
    return lambda tensors, about: tensors.update({key: tensors[key] * factor})


def drop(key: str) -> Callable[[dict[str, Tensor], dict], None]:
    def change(tensors: dict[str, Tensor], about: dict) -> None:
        del tensors[key]

    return change


def add(key: str) -> Callable[[dict[str, Tensor], dict], None]:
    return lambda tensors, about: tensors.update({key: torch.ones(3, dtype=torch.float64)})


def configure(key: str, value: object) -> Callable[[dict[str, Tensor], dict], None]:
    return lambda tensors, about: about["config"].update({key: value})


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("sherl_text", scale("output", 1 + 1e-8), "output: relative error"),
        ("sherl_text", scale("grad.weight.gate_params", 1 + 1e-8), "grad.weight.gate_params: relative error"),
        ("sherl_text", scale("grad.input.features.0", 1 + 1e-7), "grad.input.features.0: relative error"),
        ("sherl_text", scale("weight.fc_out.2.weight", 1 + 1e-7), "output: relative error"),
        ("sherl_text", drop("weight.fc_out.1.bias"), "head.proj.bias"),
        ("sherl_text", drop("grad.weight.fc_out.1.bias"), "grad.weight.fc_out.1.bias: trained here"),
        ("sherl_text", add("weight.new"), "unknown names new"),
        ("sherl_text", add("grad.weight.new"), "grad.weight.new: in the file"),
        ("sherl_text", configure("l1_eps", 1e-6), "config l1_eps is 1e-06, here it is 1e-08"),
        ("sherl_text", configure("out_ln_eps", 1e-5), "config out_ln_eps"),
        ("sherl_text", configure("other_eps", 1e-5), "config other_eps = 1e-05 is not compared"),
        ("sherl_mdetr", configure("guidance_ln_eps", 1e-6), "config guidance_ln_eps"),
        ("sherl_cnn_train", configure("bn_momentum", 0.2), "config bn_momentum"),
        ("sherl_cnn_train", scale("after.conv_out.1.running_var", 1 + 1e-8), "after.conv_out.1.running_var"),
        ("sherl_cnn_train", drop("weight.conv_out.1.num_batches_tracked"), "num_batches_tracked"),
        ("sherl_clip4clip_text", configure("base", "mean"), "config base"),
        ("sherl_clip4clip_text", configure("spatial_base_gate", True), "base_gate"),
        ("sherl_t5_encoder", scale("output", 1 + 3e-5), "output: relative error"),
        ("sherl_t5_decoder", scale("aux.backbone", 1 + 3e-5), "aux.backbone: relative error"),
        ("sherl_t5_encoder", configure("gate", "tanh(g)"), "config gate"),
        ("loss_hinge_max", configure("max_violation", False), "output: relative error"),
        ("unipt_text", configure("l1_eps", 1e-6), "config l1_eps is 1e-06, here it is 1e-08"),
        ("unipt_clip4clip_text", configure("l1", "x / (sum|x| + 1e-6)"), "config l1 is"),
        ("unipt_clip4clip_text", configure("identity", True), "not of this flavour"),
        ("unipt_mdetr_full", scale("aux.side_img_memory", 1 + 1e-8), "aux.side_img_memory: relative error"),
        ("unipt_cnn", drop("weight.identity_layers.0.0.bias"), "reducers.0.guide.bias"),
        ("lst_t5_encoder", configure("gate", "tanh(g)"), "config gate"),
        ("lst_t5_decoder", drop("weight.side_downsamples.2.bias"), "rungs.2.bias"),
        ("lst_clipvil_joint", configure("gate_temperature", 1.0), "config gate_temperature"),
        ("vqt_vit", configure("normalize_eps", 1e-6), "config normalize_eps"),
        ("synqt_vit", configure("own_ln_eps", 1e-6), "config own_ln_eps"),
        ("synqt_vit", configure("backbone_ln_eps", 1e-5), "output: relative error"),
        ("r2_temporal", configure("ln_eps", 1e-6), "config ln_eps"),
        ("r2_block", scale("grad.weight.gate", 1 + 1e-8), "grad.weight.gate: relative error"),
        ("r2_full", configure("temperature", 0.1), "config temperature"),
        ("r2_full", scale("aux.test1.boundary", 1 + 1e-8), "aux.test1.boundary: relative error"),
        ("r2_full", scale("aux.loss_sal", 1 + 1e-8), "aux.loss_sal: relative error"),
        ("dtl_vit_plus", configure("beta", 1.0), "output: relative error"),
    ],
)
def test_a_difference_is_noticed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[dict[str, Tensor], dict], None],
    complaint: str,
) -> None:
    path = changed(tmp_path, name, change)

    assert parity.main([str(path)]) == 1
    assert complaint in capsys.readouterr().out


def test_a_wrong_eps_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read_golden(GOLDEN / "sherl_text.safetensors")
    forward = RedundancyAggregator.forward

    def with_other_eps(self: RedundancyAggregator, guide: Tensor, candidates: Tensor) -> Tensor:
        self.eps = 1e-6
        found = forward(self, guide, candidates)
        self.eps = 1e-8
        return found

    monkeypatch.setattr(RedundancyAggregator, "forward", with_other_eps)
    report = compare(golden, parity.find_case(golden.about)(golden))

    assert any("output: relative error" in problem for problem in report.problems)
    assert 1e-9 < report.outputs < 1e-5


def test_rounding_noise_is_no_failure(tmp_path: Path) -> None:
    """A bias in front of a batch norm in training mode has no gradient: 1e-15 here, another 1e-15 there."""
    key = "grad.weight.conv_out.0.bias"

    def other_noise(tensors: dict[str, Tensor], about: dict) -> None:
        assert float(tensors[key].abs().max()) < 1e-14
        tensors[key] = -3 * tensors[key]

    assert parity.main([str(changed(tmp_path, "sherl_cnn_train", other_noise))]) == 0
    assert parity.main([str(changed(tmp_path, "sherl_cnn_train", scale(key, 1e6)))]) == 1


def test_an_unknown_method_is_not_covered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(tmp_path, "sherl_text", lambda tensors, about: about.update(method="other", flavour="thing"))

    assert parity.main([str(path)]) == 1
    assert "not covered: no case for other, thing" in capsys.readouterr().out


def test_one_bad_file_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    changed(tmp_path, "head_gpo", drop("weight.gpo.linear.weight"))

    assert parity.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": ok") for line in lines) == len(FILES) - 1
    assert "head_gpo: FAILED" in lines


def test_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "half.safetensors").write_bytes(b"no header")
    (tmp_path / "half.json").write_text("{}")

    for paths in ([], [str(tmp_path / "missing.safetensors")], [str(tmp_path / "half.safetensors")]):
        assert parity.main(paths) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert parity.main([str(empty)]) == 2


def test_metric_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"labels": [1, 0, 1, 1], "predictions": [1, 0, 0, 1], "accuracy": 75.0}
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue" / "four.json").write_text(json.dumps({"tasks": {"toy": labels}}))
    (tmp_path / "index.json").write_text(json.dumps([{"kind": "glue", "case": "four"}]))
    assert parity.main([str(tmp_path)]) == 0

    (tmp_path / "glue" / "four.json").write_text(json.dumps({"tasks": {"toy": {**labels, "accuracy": 76.0}}}))
    assert parity.main([str(tmp_path)]) == 1

    (tmp_path / "index.json").write_text(json.dumps([{"kind": "unheard", "case": "of"}]))
    capsys.readouterr()
    assert parity.main([str(tmp_path)]) == 1
    assert "unheard/of: not covered" in capsys.readouterr().out


METHODS = ("sherl", "unipt", "lst", "dtl")


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith(METHODS)))
def test_names_translate_both_ways(name: str) -> None:
    for table, names in side_names(name):
        for published in names:
            assert to_upstream(table, to_vlkit(table, published)) == published


def side_names(name: str) -> list[tuple[str, list[str]]]:
    """Tables, and the published names of a file's trained side path as they know them."""
    names = list(read_golden(GOLDEN / f"{name}.safetensors").part("weight."))
    side = [n for n in names if "side" in n or "lora_" in n] or names
    if name == "unipt_mdetr_full":
        split = {part: [n for n in side if f"_{part}." in n] for part in ("encoder", "decoder")}
        return [(f"unipt/mdetr_{part}", split[part]) for part in split]
    if name == "sherl_clipvil_joint":
        side = [n.removeprefix("side_block.") for n in side]
    table = next(t for t in sorted(TABLES) if all(to_vlkit(t, n) for n in side))
    return [(table, side)]
