"""The scripts that measure a GPU, as far as they go without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.scripts import ROOT, call, load_script, refuse


@pytest.mark.slow
def test_gpu_script_rehearses_on_the_cpu(tmp_path: Path) -> None:
    environment = {**os.environ, "REHEARSE": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    words = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(tmp_path), "1000"]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    checks, steps = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("gpu_checks", "training_step_gpu")
    )
    assert {row["method"] for row in checks["waits"]} >= {"SHERL", "SHERL on tokens", "LoRA", "full"}
    assert all(row["passed"] and row["gradient_error"] == 0 for row in checks["parity"])
    parts = {row["method"]: row["by_part"].keys() for row in checks["profile"]}
    assert {"pool the taps", "merge the layers", "backward of the adapter"} <= parts["SHERL"]
    assert {"reduce a tap", "second run / merge the taps"} <= parts["SHERL on tokens"]
    assert [(row["base"], row["batch_size"], row["method"]) for row in steps["rows"]] == [
        *(("tiny", 2, "SHERL"), ("tiny", 2, "LoRA")),
        *(("tiny", 3, "SHERL"), ("tiny", 3, "LoRA")),
        ("tiny@int8", 2, "SHERL"),
    ]
    assert all(row["step_ms"] > 0 and row["inference_ms"] > 0 for row in steps["rows"])
    assert "| tiny | 3 | 20 | LoRA |" in ended.stdout


def test_no_row_begins_when_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("benchmarks/training_step.py", "--bases", "tiny", "--json", tmp_path / "step.json", "--seconds", "0")
    assert "11 rows were not measured" in capsys.readouterr().err
    assert not (tmp_path / "step.json").exists()


def test_rows_that_failed_are_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = {"base": "tiny", "text_length": 77, "batch_size": 32}
    errors = {"linear": "failed: TypeError", "full": "out of memory"}
    rows = [{**place, "method": method, "error": error} for method, error in errors.items()]
    (tmp_path / "step.json").write_text(json.dumps({"rows": rows}))
    words = ("--bases", "tiny", "--json", tmp_path / "step.json", "--seconds", "0", "--methods", *errors)
    call("benchmarks/training_step.py", *words)
    assert "1 rows were not measured" in capsys.readouterr().err


def test_compiled_blocks_are_compared_with_their_own_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda function, dynamic: lambda *inputs: 1.5 * function(*inputs))
    call("benchmarks/compiled_blocks.py", "--base", "tiny", "--repeats", 3, "--json", tmp_path / "blocks.json")
    found = json.loads((tmp_path / "blocks.json").read_text())
    assert found["compiled over eager"] > 0 and found["eager ms"] > 0
    assert found["largest difference over largest value"] > 0.4  # a wrong compiler is seen
    assert "has no blocks of open_clip" in refuse("benchmarks/compiled_blocks.py", "--base", "RN50")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_bias_TNT", "matrix product"),
        ("void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>", "matrix product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64", "attention"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>", "norm"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::bfloat16_copy_kernel_cuda>", "cast or copy"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl>", "elementwise"),
        ("void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<Add>>", "elementwise"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "reduction"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("something_else", "other"),
    ],
)
def test_kernels_have_a_kind(name: str, kind: str) -> None:
    assert load_script("benchmarks/gpu_trace.py").Kernel(name, "", 1.0).kind == kind
