"""Every method by its name, and the options of a saved adapter."""

from __future__ import annotations

from typing import Any

from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.facts import KNOWN, MethodOptions
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import BitfitOptions, FullOptions, LoraOptions
from vlkit.adapters.unipt.options import UniptOptions
from vlkit.adapters.vqt import VqtOptions
from vlkit.errors import UserError

ADAPTERS: dict[str, type[MethodOptions]] = {
    "sherl": SherlOptions,
    "unipt": UniptOptions,
    "lst": LstOptions,
    "dtl": DtlOptions,
    "vqt": VqtOptions,
    "linear": LinearOptions,
    "bitfit": BitfitOptions,
    "lora": LoraOptions,
    "full": FullOptions,
}
"""Name for ``--adapter.kind`` -> its options, which build the adapted encoder and hold the facts about the method."""

KNOWN.update(ADAPTERS)  # a method's refusal names those that can


def adapter_options(values: dict[str, Any]) -> MethodOptions:
    """The options object of a saved adapter (inverse of ``asdict``, but for what says how its training steps ran).

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    kind = values.get("kind")
    if kind not in ADAPTERS:
        raise UserError(f"adapter_config.json: kind {kind!r} is none of {', '.join(ADAPTERS)}; update vlkit")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    known = {key: value for key, value in known.items() if key not in ADAPTERS[kind].running}
    try:
        return ADAPTERS[kind](**known)
    except TypeError as error:
        raise UserError(f"adapter_config.json: options of {kind!r} do not fit ({error}); update vlkit") from None
