"""Classification: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.classification.pipeline import open_adapter
from vlkit.tasks.task import Task

TASK = Task(
    name="classification",
    records=RECORDS["classification"],
    scores={"top-1": "top1", "top-5": "top5", "mean per class": "mean_per_class", "ECE": "ece"},
    open_adapter=open_adapter,
    demo=RECIPES["classification"],
    pipeline_tag="image-classification",
    controls={
        "zero-shot": ("head.kind=zeroshot", "adapter.kind=linear"),
        "ridge": ("head.kind=ridge", "adapter.kind=linear"),
        "tip-adapter": ("head.kind=cache", "adapter.kind=linear"),
        "blackvip": ("epochs=4",),  # of 5 steps with 1,280 questions each on the demo data
    },
    control_scripts={"blackvip": "black_box.py"},
)
