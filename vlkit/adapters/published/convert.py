"""Find the blocks in a published checkpoint and the options that build them in vlkit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlkit.adapters.published.names import drop_idle_gates, import_published, published_pattern
from vlkit.adapters.published.tables import OPTIONAL, TABLES
from vlkit.errors import UserError, some

CONVERT = "safetensors.torch.save_file(torch.load(FILE, map_location='cpu', weights_only=True), 'FILE.safetensors')"


@dataclass(frozen=True)
class Block:
    """One published block.

    Attributes:
        flavour: key of :data:`vlkit.adapters.published.tables.TABLES`.
        prefix: common prefix of its tensors' names in the file.
        tensors: tensors under their vlkit names.
    """

    flavour: str
    prefix: str
    tensors: dict[str, Tensor]

    def options(self) -> dict[str, Any]:
        """Options that build the block, as JSON values; options that the tensors do not determine are left out."""
        kind, _, variant = self.flavour.partition("/")
        return {"kind": kind, **_OPTIONS.get(kind, lambda variant, tensors: {})(variant, self.tensors)}


def read_published(path: str | Path) -> list[Block]:
    """The blocks of a published checkpoint.

    Args:
        path: a safetensors file with published names: the weights of one block, or a whole model.

    Raises:
        UserError: the file does not exist, is not safetensors, or holds no block of a known flavour.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a safetensors file ({error}); published checkpoints are pickles, convert them with {CONVERT}"
        ) from None
    blocks = find_blocks(tensors)
    if not blocks:
        starts = sorted({".".join(name.split(".")[:2]) for name in tensors})
        raise UserError(
            f"{path}: no block of a known flavour ({', '.join(TABLES)}); "
            f"its tensors are named {some(starts, 8) or '(there are none)'}"
        )
    return blocks


def find_blocks(tensors: Mapping[str, Tensor]) -> list[Block]:
    """Find every block among published tensors, largest first; other tensors (the base, heads) are ignored."""
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    found: list[tuple[str, str, list[str]]] = []
    for flavour in TABLES:
        found += [(flavour, prefix, names) for prefix, names in _places(flavour, bare)]
    blocks, taken = [], set()
    # The same tensors can also match a smaller flavour: prefer the one that uses the most tensors.
    for flavour, prefix, names in sorted(found, key=lambda place: -len(place[2])):
        if taken.isdisjoint(names):
            taken.update(names)
            own = drop_idle_gates({name[len(prefix) :]: bare[name] for name in names})
            blocks.append(Block(flavour, prefix, import_published(flavour, own)))
    return blocks


def _places(flavour: str, tensors: Mapping[str, Tensor]) -> list[tuple[str, list[str]]]:
    """Prefixes under which every required row of the flavour's table has a tensor, with the names of these tensors."""
    rows = [row for row, _ in TABLES[flavour]]
    hits: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        pattern = re.compile(rf"(?P<prefix>(?:[^.]+\.)*?){published_pattern(row)}")
        for name in tensors:
            if match := pattern.fullmatch(name):
                hits.setdefault(match["prefix"], {}).setdefault(row, set()).add(name)
    needed = set(rows) - OPTIONAL
    return [(prefix, sorted(set().union(*by_row.values()))) for prefix, by_row in hits.items() if needed <= set(by_row)]


# --- options ----------------------------------------------------------------------------------------------------------


def _reduction(wide: int, narrow: int) -> dict[str, int]:
    """The ``reduction`` that maps ``wide`` to ``narrow``; empty if no integer does."""
    reduction = wide // narrow
    return {"reduction": reduction} if reduction and wide // reduction == narrow else {}


def _sherl(variant: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    if variant == "pooled":
        wide, narrow = tensors["head.proj.weight"].shape
        gate = {"base_gate": True} if "base_gate" in tensors else {}
        return {"handoff": "pooled", "init": "published", **_reduction(wide, narrow), **gate}
    prefix = "adapter." if variant == "t5" else ""
    wide, narrow = tensors[f"{prefix}head.proj.weight"].shape[:2]
    flavour = {} if variant in ("conv", "t5") else {"flavour": variant}
    return {"handoff": "tokens", "init": "published", **_reduction(wide, narrow), **flavour}


def _unipt(variant: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    variant = variant.split("_")[0]
    head = next((tensors[name] for name in ("head.proj.weight", "head.weight") if name in tensors), None)
    size = {} if head is None else _reduction(*head.shape[:2])
    if variant == "pooled":
        return {"handoff": "pooled", "init": "published", **size}
    return {"handoff": "tokens", "init": "published", **size, **({} if variant == "conv" else {"flavour": variant})}


def _lst(variant: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found: dict[str, Any] = {"init": "published"}
    first = next((name for name in tensors if name.endswith("first.weight")), None)
    if first is not None:
        narrow, wide = tensors[first].shape
        found |= _reduction(wide, narrow)
        if first.removesuffix("weight") + "bias" not in tensors:
            found["bias"] = False
    kept = {int(match[1]) for name in tensors if (match := re.match(r"(?:ladder\.)?blocks\.(\d+)\.", name))}
    return {**found, "keep": tuple(sorted(kept))} if kept else found


def _synqt(variant: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    hidden, inner = (len(tensors[f"blocks.0.{name}.down.weight"]) for name in ("first", "attention.query"))
    # The learned factors are in the tensors, so their first values do not matter.
    return {"queries": tensors["seeds"].shape[1], "hidden": hidden, "attention_hidden": inner, "init": "published"}


def _r2(variant: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    scale = next((tensor for name, tensor in tensors.items() if name.endswith("scale")), None)
    return {} if scale is None else {"last": len(scale)}


_OPTIONS = {
    "sherl": _sherl,
    "unipt": _unipt,
    "lst": _lst,
    "r2": _r2,
    "vqt": lambda variant, tensors: {"queries": tensors["queries"].shape[1]},
    "synqt": _synqt,
    "dtl": lambda variant, tensors: {"rank": len(next(t for n, t in tensors.items() if n.endswith("down.weight")))},
}
