"""Training for any model: the loop, its config, checkpoints and the run folder. Independent of the task."""
