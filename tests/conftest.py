"""Runs before any test module: how much of the machine a test process may take."""

import os

# The workers of pytest-xdist share the cores: with more threads than cores each operation waits for the others'.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
