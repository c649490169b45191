"""Merge the modules that peft inserted (LoRA and other mergeable methods) into the weights of the base."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlkit.errors import UserError


@torch.no_grad()
def merge_(model: nn.Module) -> nn.Module:
    """Merge every peft layer of ``model`` into the layer that it wraps, in place; other models stay as they are.

    Raises:
        UserError: the method of peft cannot be merged.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    # The layer around an attention merges the one around its output projection itself.
    outer = [name for name in layers if not any(name.startswith(f"{other}.") for other in layers)]
    for name in outer:
        layer = layers[name]
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _merged(layer))
    return model


def _merged(layer: Any) -> nn.Module:
    try:
        if hasattr(layer, "unload_and_optionally_merge_module"):  # torch's attention
            return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        layer.merge()
    except (NotImplementedError, AttributeError, ValueError) as error:
        raise UserError(f"{type(layer).__name__} of peft cannot be merged into the base ({error})") from error
    return layer.get_base_layer()
