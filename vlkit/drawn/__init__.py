"""The demo world: drawn scenes with captions, so that every task runs without a download."""
