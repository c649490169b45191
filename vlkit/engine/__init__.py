"""Training any model: the loop, its config, checkpoints, the run folder. Knows no task."""
