"""The fused kernels of SHERL on the pooled embedding; without a GPU, Triton's interpreter runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vlkit.adapters.sherl.options import SherlOptions
from vlkit.errors import UserError


def test_equal_to_the_operations() -> None:
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("fused_kernels.py")
    words = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | ({} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"})
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_belongs_to_the_lean_pooled_hand_off() -> None:
    with pytest.raises(UserError, match=r"--adapter.fused: belongs to --adapter.lean true"):
        SherlOptions(lean=False, fused=False)
    with pytest.raises(UserError, match=r"--adapter.fused: belongs to --adapter.handoff pooled"):
        SherlOptions(handoff="tokens", fused=False)
