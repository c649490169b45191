"""Cached early routes: the frozen part runs once for each example, its taps are stored and read again."""
