"""Optimizers of other libraries, for full fine-tuning with less optimizer state: 8-bit AdamW and APOLLO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlkit.errors import needs

APOLLO_RANK, APOLLO_GAP, APOLLO_SCALE = 256, 200, 1.0
"""Rank of the projected gradients, steps between new projections, and factor on the update: APOLLO's own defaults."""


def adamw_8bit(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments (Dettmers et al., ICLR 2022), of bitsandbytes; small tensors keep 32 bits."""
    with needs("optimizers", "--optimizer adamw8bit"):
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    return cast(Any, AdamW8bit)(groups, lr=lr)


def apollo(groups: list[dict[str, Any]], lr: float, rank: int = APOLLO_RANK) -> torch.optim.Optimizer:
    """APOLLO (Zhu et al., MLSys 2025): matrices with low-rank moments, everything else as AdamW.

    Args:
        groups: parameters with ``weight_decay``.
        lr: learning rate.
        rank: most values per row (or column) of a matrix's moments; half the smaller side where that is less.
    """
    found = []
    for group in groups:
        low: dict[int, list[nn.Parameter]] = {}
        others = [p for p in group["params"] if p.ndim != 2]
        for p in group["params"]:
            if p.ndim == 2:
                low.setdefault(max(1, min(rank, min(p.shape) // 2)), []).append(p)
        found += [{**group, "params": others}] if others else []
        for r, matrices in low.items():
            projection = {"rank": r, "proj": "random", "proj_type": "std", "update_proj_gap": APOLLO_GAP}
            found.append({**group, "params": matrices, **projection, "scale": APOLLO_SCALE, "scale_type": "channel"})
    return _resumable_apollo()(found, lr=lr)


def _resumable_apollo() -> Any:
    """APOLLO whose projections follow from seed and step, so that a checkpoint needs only tensors."""
    with needs("optimizers", "--optimizer apollo"):
        from apollo_torch import APOLLOAdamW  # pyright: ignore[reportMissingImports]
        from apollo_torch.random_projector import next_seed  # pyright: ignore[reportMissingImports]

    class Apollo(APOLLOAdamW):
        def _initialize_projector(self, group: dict[str, Any], state: dict[str, Any]) -> Any:
            seed = int(state["seed"])
            for _ in range(int(state.get("step", 0)) // group["update_proj_gap"]):
                seed = next_seed(seed)
            return super()._initialize_projector(group, {**state, "seed": seed})

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            super().load_state_dict(state_dict)
            for values in self.state.values():  # as numbers of Python: powers of a tensor round otherwise
                values |= {key: int(values[key]) for key in ("step", "seed") if key in values}

        def extra_tensors(self) -> Iterator[Tensor]:
            """Tensors that are kept beside the state."""
            for values in self.state.values():
                if "projector" in values and values["projector"].ortho_matrix is not None:
                    yield values["projector"].ortho_matrix

    return Apollo
