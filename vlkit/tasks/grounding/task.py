"""Visual grounding: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.grounding.pipeline import open_adapter
from vlkit.tasks.task import Task

TASK = Task(
    name="grounding",
    records=RECORDS["grounding"],
    scores={"acc@0.5": "acc@0.5", "mean IoU": "mean_iou"},
    open_adapter=open_adapter,
    demo=RECIPES["grounding"],
    own_text_base=True,
)
