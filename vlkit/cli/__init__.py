"""Command lines from dataclasses: flags, YAML, help and exit codes."""

from vlkit.cli.compiler import defer_compiler, runs_a_script
from vlkit.cli.model_registry import defer_model_registry

# Only in vlkit's own commands: whoever imports vlkit into a program of their own finds PyTorch as it is. Each script
# imports this package first.
if runs_a_script():
    defer_compiler()
    defer_model_registry()
