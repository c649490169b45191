"""Staged encoders for the towers of open_clip, transformers and timm, one module per kind of tower."""
