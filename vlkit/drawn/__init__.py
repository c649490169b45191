"""The demo world: drawn scenes with captions, so that every task runs without a download."""

VERSION = 5
"""Incremented when the same seed gives other files."""
