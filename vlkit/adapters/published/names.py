"""Rename tensors of published checkpoints: one table per flavour, used in both directions.

``python -m vlkit.adapters.published`` converts a file to an adapter folder. :func:`strip_prefix` removes a parallel
wrapper's ``module.``, and :func:`drop_idle_gates` removes gates of layers without a side block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vlkit.adapters.published.tables import TABLES, UNUSED
from vlkit.errors import UserError, some


def to_vlkit(flavour: str, name: str) -> str | None:
    """The vlkit name of a published tensor, or None if the flavour's table does not list it."""
    return _translate(name, TABLES[flavour], 0, 1)


def to_upstream(flavour: str, name: str) -> str | None:
    """The published name of a vlkit tensor, or None if the flavour's table does not list it."""
    return _translate(name, TABLES[flavour], 1, 0)


def import_published(flavour: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published adapter so that ``adapter.load_state_dict`` accepts them.

    Args:
        flavour: a key of :data:`TABLES`.
        tensors: published names -> tensors, only of the side block (see :func:`strip_prefix`); those in
            :data:`vlkit.adapters.published.tables.UNUSED` are left out.

    Raises:
        UserError: the table does not list some names; the message lists them.
    """
    unused = re.compile(UNUSED.get(flavour, r"(?!)"))
    renamed = {name: to_vlkit(flavour, name) for name in tensors if not unused.fullmatch(name)}
    unknown = [name for name, own in renamed.items() if own is None]
    if unknown:
        raise UserError(f"published {flavour} weights: unknown names {some(unknown)}; is this another flavour?")
    return {own: tensors[name] for name, own in renamed.items() if own is not None}


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keep the tensors whose names start with ``prefix`` (after an optional ``module.``) and remove the prefix."""
    bare = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name[len(prefix) :]: tensor for name, tensor in bare.items() if name.startswith(prefix)}


def drop_idle_gates(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the gates of layers without a side block: published LST files hold a gate for every layer."""
    numbers = re.compile(r"side_(?:gate_params|downsamples)(?:_l)?\.(\d+)")
    kept = {m[1] for name in tensors if "downsamples" in name and (m := numbers.match(name))}

    def idle(name: str) -> bool:
        match = numbers.match(name)
        return "gate_params" in name and match is not None and match[1] not in kept

    return {name: tensor for name, tensor in tensors.items() if not idle(name)}


def _translate(name: str, rows: list[tuple[str, str]], source: int, target: int) -> str | None:
    for row in rows:
        match = re.fullmatch(published_pattern(row[source]), name)
        if match:
            # Published numbers start at the first candidate, ours (*+1) at the tap before it.
            shift = ("*+1" in row[target]) - ("*+1" in row[source])
            groups = match.groupdict("")
            number = str(int(groups["number"]) + shift) if groups.get("number") else ""
            if number == "-1":
                continue
            found = row[target].replace(".**", groups.get("path", "")).replace("*+1", number).replace("*", number)
            return found + groups["rest"]
    return None


def published_pattern(name: str) -> str:
    """The regular expression for a table's row: groups ``number``, ``path`` and ``rest``."""
    pattern = re.escape(name).replace(r"\.\*\*", r"(?P<path>(?:\.[^.]+)+)")
    pattern = pattern.replace(r"\*\+1", r"(?P<number>\d+)").replace(r"\*", r"(?P<number>\d+)")
    return rf"{pattern}(?P<rest>{'' if '**' in name else '(?:[._][^.]+)?'})"
