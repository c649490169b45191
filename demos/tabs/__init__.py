"""The tabs of the web demo: layout and text. :mod:`vlkit.serving` and the pipelines compute the results."""
