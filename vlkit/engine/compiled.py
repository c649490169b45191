"""``--compile``: frozen blocks run by torch.compile."""

from __future__ import annotations

from torch import nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.encoders.blocks.anatomy import Opaque
from vlkit.errors import UserError


def compile_frozen(model: nn.Module) -> None:
    """Compile the blocks of a model's towers where no gradient passes; they are compiled when they first run.

    Raises:
        UserError: the method trains through every block, or a tower has no blocks that can be compiled.
    """
    encoders = [module for module in model.modules() if isinstance(module, AdaptedEncoder)]
    if not encoders:
        raise UserError("--compile true: with this method gradient passes through every block; leave it out")
    try:
        for encoder in encoders:
            encoder.base.compile_blocks()
    except Opaque as problem:
        raise UserError(f"--compile true: {problem}; leave it out") from None
