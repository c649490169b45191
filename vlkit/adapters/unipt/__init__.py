"""UniPT (CVPR 2024)."""
