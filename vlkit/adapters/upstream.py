"""Names of published checkpoints: one table a flavour, used in both directions.

Each row is ``(published name, name here)``; ``*`` stands for a tap number and is carried over. Published files are
pickles: convert them to safetensors first. Strip a parallel wrapper's ``module.`` with :func:`strip_prefix`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vlkit.errors import UserError, some

_TOKEN = [
    ("gate_params", "gate.gamma"),
    ("guide_block.fc_attn", "aggregator.score"),
]
_GATED = [
    *_TOKEN,
    ("hor_block.*.fc1", "reducers.*.proj"),
    ("hor_block.*.fc2", "reducers.*.up"),
    ("hor_block.*.fc3", "reducers.*.gate"),
    ("fc_out", "head.proj"),
]
TABLES: dict[str, list[tuple[str, str]]] = {
    "sherl/text": [
        *_TOKEN,
        ("hor_block.*.fc.0", "reducers.*.proj"),
        ("hor_block.*.fc.1", "reducers.*.norm"),
        ("fc_out.1", "head.proj"),
        ("fc_out.2", "head.norm"),
    ],
    "sherl/gated": _GATED,
    "sherl/t5": [
        *[(f"side_mtsa_block.{published}", f"adapter.{own}") for published, own in _GATED],
        ("final_side_layer_norm", "norm"),
    ],
    "sherl/mdetr": [
        *_TOKEN,
        ("guide_block.mlp.0", "aggregator.post.up"),
        ("guide_block.mlp.2", "aggregator.post.down"),
        ("guide_block.mlp.3", "aggregator.post.norm"),
        ("hor_block.*.fc", "reducers.*.proj"),
        ("hor_block.*.norm", "reducers.*.norm"),
        ("fc_out", "head.proj"),
        ("norm_out", "head.norm"),
    ],
    "sherl/conv": [
        *_TOKEN,
        ("hor_block.*.conv.0", "reducers.*.proj"),
        ("hor_block.*.conv.1", "reducers.*.norm"),
        ("conv_out.0", "head.proj"),
        ("conv_out.1", "head.norm"),
    ],
    "sherl/pooled": [
        ("guide_block.layer_attn", "aggregator.score"),
        ("guide_block.spatial_attn.*", "token_scores.*"),
        ("guide_block.gate_parameters", "base_gate"),
        ("hor_block.*.fc", "reducers.*"),
        ("hor_block_last.fc", "guide_reducer"),
        ("fc_out", "head.proj"),
    ],
    "gpo": [("gpo.gru", "gru"), ("gpo.linear", "score")],
}
"""Flavour -> rows. A row names a module (its weights and buffers follow) or a parameter."""


def to_vlkit(flavour: str, name: str) -> str | None:
    """The name here of a published tensor, or None if the flavour's table does not know it."""
    return _translate(name, TABLES[flavour], 0, 1)


def to_upstream(flavour: str, name: str) -> str | None:
    """The published name of one of our tensors, or None if the flavour's table does not know it."""
    return _translate(name, TABLES[flavour], 1, 0)


def import_published(flavour: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published adapter so that ``adapter.load_state_dict`` takes them.

    Args:
        flavour: a key of :data:`TABLES`.
        tensors: published names -> tensors, of the side block alone (see :func:`strip_prefix`).

    Raises:
        UserError: names that the table does not know, all listed.
    """
    renamed = {name: to_vlkit(flavour, name) for name in tensors}
    unknown = [name for name, own in renamed.items() if own is None]
    if unknown:
        raise UserError(f"published {flavour} weights: unknown names {some(unknown)}; is this another flavour?")
    return {own: tensors[name] for name, own in renamed.items()}


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keep the tensors whose names start with ``prefix`` (``module.`` in front is ignored) and cut it off."""
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name[len(prefix) :]: tensor for name, tensor in bare.items() if name.startswith(prefix)}


def _translate(name: str, rows: list[tuple[str, str]], source: int, target: int) -> str | None:
    for row in rows:
        pattern = re.escape(row[source]).replace(r"\*", r"(\d+)")
        match = re.fullmatch(rf"{pattern}((?:[._][^.]+)?)", name)
        if match:
            *numbers, rest = match.groups()
            return row[target].replace("*", numbers[0] if numbers else "") + rest
    return None
