"""Frozen bases as staged encoders; :mod:`vlkit.encoders.staged` has the interface, :mod:`vlkit.encoders.load` loads."""

from vlkit.encoders.staged import StagedEncoder, Stream, freeze, run_blocks, run_early, unfreeze

__all__ = ["StagedEncoder", "Stream", "freeze", "run_blocks", "run_early", "unfreeze"]
