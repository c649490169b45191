"""Adaptation methods, one file or folder each; all share one call: ``options.build(encoder)(x) -> Encoded``."""

from vlkit.adapters.base import AdaptedEncoder, Adapter, Encoded, trained_state
from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.options import ADAPTERS, adapter_options

__all__ = ["ADAPTERS", "AdaptedEncoder", "Adapter", "Encoded", "MethodOptions", "adapter_options", "trained_state"]
