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
        # 200 steps of 128 questions on the demo data; larger steps (0.02) let the loss rise there.
        "blackvip": ("epochs=10", "batch_size=32", "spsa.averages=2", "spsa.a=0.001", "eps=0.3"),
    },
    control_scripts={"blackvip": "black_box.py"},
)
