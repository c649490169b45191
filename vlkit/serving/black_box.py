"""Models that are known by their answers alone, for users: see :mod:`vlkit.engine.asking`."""

from vlkit.engine.asking import BlackBox, BlackBoxError, BudgetSpent, HttpBlackBox, HttpOptions, LocalBlackBox

__all__ = ["BlackBox", "BlackBoxError", "BudgetSpent", "HttpBlackBox", "HttpOptions", "LocalBlackBox"]
