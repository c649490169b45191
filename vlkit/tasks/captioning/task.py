"""Image captioning: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.captioning.pipeline import open_adapter
from vlkit.tasks.task import Task

TASK = Task(
    name="captioning",
    records=RECORDS["retrieval"],
    scores={"CIDEr-D": "cider", "BLEU-4": "bleu4", "ROUGE-L": "rouge_l"},
    open_adapter=open_adapter,
    datasets="retrieval",
    demo=RECIPES["retrieval"],
    own_text_base=True,
    pipeline_tag="image-to-text",
    controls={"nearest": ()},
    control_scripts={"nearest": "nearest.py"},
)
