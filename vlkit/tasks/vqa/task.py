"""Visual question answering: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.task import Task
from vlkit.tasks.vqa.pipeline import open_adapter

TASK = Task(
    name="vqa",
    records=RECORDS["vqa"],
    scores={"accuracy": "accuracy"},
    open_adapter=open_adapter,
    demo=RECIPES["vqa"],
    own_text_base=True,
    pipeline_tag="visual-question-answering",
)
