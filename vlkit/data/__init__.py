"""Prepared datasets, media files and what turns them into batches. Nothing here knows a model."""
