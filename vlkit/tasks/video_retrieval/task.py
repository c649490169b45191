"""Text-video retrieval: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.task import Task
from vlkit.tasks.video_retrieval.pipeline import open_adapter

TASK = Task(
    name="video_retrieval",
    records=RECORDS["video_retrieval"],
    scores={"rsum": "rsum", "v2t R@1": "v2t_r1", "t2v R@1": "t2v_r1"},
    open_adapter=open_adapter,
    demo=RECIPES["video_retrieval"],
)
