"""Devices, and two settings that make CPU training about twice as fast."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's mallopt numbers


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next step instead of giving their pages back to the kernel.

    Every training step allocates the same large blocks. By default the kernel hands out new pages and fills them with
    zeros, which takes longer than a small model computes. Returns False without glibc, where nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)


def machine(device: torch.device) -> str:
    """Description of a device, shown beside numbers that were measured on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    about = Path("/proc/cpuinfo")  # Linux only; elsewhere Python may know the name
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    return f"{name}, {torch.get_num_threads()} thread(s)"


def fast_bfloat16(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bf16 autocast where it is faster than float32: on CUDA, and on a CPU with instructions for it (AMX, AVX512-BF16).

    Other CPUs convert every value in software, which takes ten times as long as float32.
    """
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        if not (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")):
            return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def attention_for(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Attention kernel for training on many short sequences: on the CPU, plain matrix products beat the fused one."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
