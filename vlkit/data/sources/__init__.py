"""Official dataset files -> records by split. One module a dataset; :mod:`.prepare` writes what they return."""
