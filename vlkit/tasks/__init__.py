"""The tasks: a folder each, with the same file names in it, and what several of them share."""
