"""Moment retrieval: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.moment_retrieval.model import METHODS
from vlkit.tasks.moment_retrieval.pipeline import open_adapter
from vlkit.tasks.task import Task

TASK = Task(
    name="moment_retrieval",
    records=RECORDS["moment_retrieval"],
    scores={"R1@0.5": "r1@0.5", "R1@0.7": "r1@0.7", "mAP": "map", "highlight mAP": "hl_map"},
    open_adapter=open_adapter,
    demo=RECIPES["moment_retrieval"],
    methods=METHODS,
)
