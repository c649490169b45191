"""Image classification, with few images per class or many."""
