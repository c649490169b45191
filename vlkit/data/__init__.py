"""Prepared datasets and media files, and the code that turns them into batches. Nothing here depends on a model."""
