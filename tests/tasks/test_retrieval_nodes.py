"""Image-text retrieval on two nodes: two agents of torchrun that find each other over the loopback interface."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.drawn_pairs import draw_pairs
from helpers.scripts import ROOT, launch

TRAIN = "tasks/retrieval/train.py"
SAME = ("--batch_size", 8, "--epochs", 2, "--device", "cpu", "--before", "false", "--log_every", 1, "--workers", 0)


@pytest.mark.slow
def test_two_nodes_train_bit_for_bit_like_one_process(tmp_path: Path) -> None:
    """The one process encodes and compares as many pairs at once as each node does (``--loss.chunk``)."""
    folder = tmp_path / "data"
    folder.mkdir()
    words = ("--data.root", draw_pairs(folder, {"train": 16, "val": 6, "test": 8}), *SAME)
    done = launch(TRAIN, *words, "--output", tmp_path / "one", "--loss.chunk", 4)
    assert done.returncode == 0, done.stderr
    two_agents(tmp_path / "nodes", *words)

    state, adapter = Path("checkpoint", "state.safetensors"), Path("vlkit_adapter.safetensors")
    start = json.loads((tmp_path / "one" / "log.jsonl").read_text().splitlines()[0])
    assert start["step"] == 1 and start["gradient_norm"] > 0
    for file in (adapter, state):
        one, nodes = (load_file(tmp_path / run / file) for run in ("one", "nodes"))
        assert one.keys() == nodes.keys() and len(one) > 40
        assert [name for name in one if not torch.equal(one[name], nodes[name])] == []


def two_agents(output: Path, *words: object) -> None:
    """Run the script on two nodes with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    agent += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "test"]
    agent += ["--local_addr", "127.0.0.1", str(ROOT / TRAIN), "--output", str(output), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    messages = [output.with_suffix(f".{node}") for node in (0, 1)]
    agents = []
    for message in messages:
        with open(message, "w", encoding="utf-8") as said:
            agents.append(subprocess.Popen(agent, stdout=said, stderr=subprocess.STDOUT, env=environment))
    try:
        codes = [process.wait(600) for process in agents]
    finally:
        for process in agents:
            process.kill()
    assert codes == [0, 0], messages[0].read_text(encoding="utf-8") + messages[1].read_text(encoding="utf-8")
