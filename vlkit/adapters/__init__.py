"""Adaptation methods: one file each, all used the same way: ``options.build(encoder)(x) -> Encoded``."""

from vlkit.adapters.base import AdaptedEncoder, Adapter, Encoded, trained_state
from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.sherl.tokens import SherlOptions
from vlkit.adapters.tuning import BitfitOptions, FullOptions, LoraOptions
from vlkit.adapters.unipt.method import UniptOptions
from vlkit.adapters.vqt import VqtOptions

ADAPTERS = {
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
"""Name for ``--adapter.kind`` -> its options, which build the adapted encoder."""
TUNING = ("bitfit", "lora", "full")
"""Those that train inside the base: they have no frozen early route that could be cached."""

__all__ = ["ADAPTERS", "TUNING", "AdaptedEncoder", "Adapter", "Encoded", "trained_state"]
