"""Published weights: their names, and a command that turns a file into an adapter folder."""
