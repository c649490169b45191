"""What every peer's search script is given, and how its two stages are measured: building an index, and searching it.

Each stage runs in a process of its own, so that its resident memory is its own. Nothing but NumPy is needed here.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K = 10
"""Results per query."""


def resident() -> int:
    """Resident bytes of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def stage(
    build: Callable[[Path, Path], None], open_index: Callable[[Path], Callable[[np.ndarray], np.ndarray]]
) -> None:
    """Run one stage as the command line says, and write its figures.

    Args:
        build: (folder of ``vectors/*.npy``, folder of the index).
        open_index: folder of the index -> search, which maps a query [1, D] float32 to row numbers [1, K] int64.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", choices=["build", "search"], required=True)
    for name in ("data", "index", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    values = parser.parse_args()
    before, began = resident(), time.perf_counter()
    if values.what == "build":
        build(values.data, values.index)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        row: dict[str, Any] = {"build_s": time.perf_counter() - began, "build_bytes": max(0, peak - before)}
    else:
        search, truth = open_index(values.index), np.load(values.data / "truth.npy")
        queries = np.load(values.data / "queries.npy")
        search(queries[:1])
        began = time.perf_counter()
        found = np.concatenate([search(query[None]) for query in queries])
        seconds = (time.perf_counter() - began) / len(queries)
        recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(truth, found, strict=True)]))
        row = {"query_ms": 1e3 * seconds, "search_bytes": resident() - before, "recall_at_10": recall}
    values.output.write_text(json.dumps(row), encoding="utf-8")
