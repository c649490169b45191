"""Options of the adaptation methods as adapter folders keep them."""

from __future__ import annotations

from typing import Any

from vlkit.adapters import ADAPTERS
from vlkit.errors import UserError


def adapter_options(values: dict[str, Any]) -> Any:
    """The options object of a saved adapter (inverse of ``asdict``).

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    kind = values.get("kind")
    if kind not in ADAPTERS:
        raise UserError(f"adapter_config.json: kind {kind!r} is none of {', '.join(ADAPTERS)}; update vlkit")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return ADAPTERS[kind](**known)
    except TypeError as error:
        raise UserError(f"adapter_config.json: options of {kind!r} do not fit ({error}); update vlkit") from None
