"""Image-text retrieval: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.retrieval.pipeline import open_adapter
from vlkit.tasks.task import Task

TASK = Task(
    name="retrieval",
    records=RECORDS["retrieval"],
    scores={"rsum": "rsum", "i2t R@1": "i2t_r1", "t2i R@1": "t2i_r1"},
    open_adapter=open_adapter,
    demo=RECIPES["retrieval"],
)
