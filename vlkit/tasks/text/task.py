"""Text to text: its description for the rest of vlkit."""

from __future__ import annotations

from vlkit.data.records import RECORDS
from vlkit.drawn.prepared import RECIPES
from vlkit.tasks.task import Task
from vlkit.tasks.text.pipeline import open_adapter

TASK = Task(
    name="text",
    records=RECORDS["text"],
    scores={"score": "score"},
    open_adapter=open_adapter,
    demo=RECIPES["text"],
    tower="text",
    own_text_base=True,
    pipeline_tag="text-classification",
    controls={"bag-of-words": ()},
    control_scripts={"bag-of-words": "bag_of_words.py"},
)
