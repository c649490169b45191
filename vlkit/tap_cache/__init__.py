"""Cached early routes: the frozen part runs once per example, and its taps are stored on disk and reused."""
