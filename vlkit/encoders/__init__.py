"""Frozen bases as staged encoders; see :mod:`vlkit.encoders.staged` for the interface and ``load`` for loading one."""

from vlkit.encoders.staged import StagedEncoder, Stream, freeze, run_blocks, run_early, unfreeze

__all__ = ["StagedEncoder", "Stream", "freeze", "run_blocks", "run_early", "unfreeze"]
