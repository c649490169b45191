"""The tasks: one folder per task, with the same file names in each, and the code that several tasks share."""
