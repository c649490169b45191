"""Command lines from dataclasses: flags, YAML, help and exit codes."""
