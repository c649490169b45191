"""Snapshots of a run in memory that outlives its processes, with redundancy over the nodes.

The method of REFT (arXiv 2310.12670) for a state that every process holds whole: each node keeps either all of it or
its share and a parity of the others' shares (:mod:`vlkit.engine.snapshots.parity`) in slots
(:mod:`vlkit.engine.snapshots.slots`) of a memory file system or of a process that holds memory
(:mod:`vlkit.engine.snapshots.memory`). Processes that start again read the newest complete set before any checkpoint.
"""

from vlkit.engine.snapshots.manager import Redundancy, Snapshots

__all__ = ["Redundancy", "Snapshots"]
