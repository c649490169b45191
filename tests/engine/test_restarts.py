"""Processes that torchrun starts again after one of them died."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError

SCRIPT = """
import os, torch
from vlkit.engine.distributed import average_numbers, make_fabric
fabric = make_fabric("cpu")
mean = average_numbers(fabric, {"rank": float(fabric.global_rank)})
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    os._exit(9)
if fabric.is_global_zero:
    print("attempt", os.environ["TORCHELASTIC_RESTART_COUNT"], "mean", mean["rank"])
"""


@pytest.mark.slow
def test_restarted_processes_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    environment.pop("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", None)
    command += ["--max-restarts", "1", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "attempt 1 mean 0.5" in done.stdout


def test_restarts_on_several_nodes_are_refused_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    several = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
    for name, value in {**several, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        make_fabric("cpu")
