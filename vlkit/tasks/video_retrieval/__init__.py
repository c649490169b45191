"""Video-text retrieval."""
