"""Every method by its name, and the options of a saved adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlkit.adapters.any_peft import PeftOptions
from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.facts import KNOWN, MethodOptions
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.s2a import S2aOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.side_attention import SideAttentionOptions
from vlkit.adapters.synqt import SynqtOptions
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
    "synqt": SynqtOptions,
    "side_attention": SideAttentionOptions,
    "linear": LinearOptions,
    "bitfit": BitfitOptions,
    "lora": LoraOptions,
    "s2a": S2aOptions,
    "peft": PeftOptions,
    "full": FullOptions,
}
"""``--adapter.kind`` -> options class, which builds the adapted encoder and holds the facts about the method."""

KNOWN.update(ADAPTERS)  # error messages name the methods that support a request


def adapter_options(values: dict[str, Any], methods: Mapping[str, type[MethodOptions]] = ADAPTERS) -> MethodOptions:
    """The options object of a saved adapter: inverse of ``asdict``, without the options in ``running``.

    Args:
        values: the saved options.
        methods: kind -> options class; a task may know further ones.

    Raises:
        UserError: this version of vlkit does not know the kind or an option.
    """
    kind: Any = values.get("kind")
    if kind not in methods:
        raise UserError(f"vlkit_adapter.json: kind {kind!r} is none of {', '.join(methods)}; update vlkit")
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    known = {key: value for key, value in known.items() if key not in methods[kind].running}
    try:
        return methods[kind](**known)
    except TypeError as error:
        raise UserError(f"vlkit_adapter.json: options of {kind!r} do not fit ({error}); update vlkit") from None
