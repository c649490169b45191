"""Published weights: their tensor names, and a command that converts a checkpoint to an adapter folder."""
