"""The tabs of the web demo: layout and words. What they show is computed by :mod:`vlkit.serving` and the pipelines."""
