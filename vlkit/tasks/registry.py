"""Every task, by name. A new task is a folder beside this file and an entry here (docs/add-a-task.md)."""

from __future__ import annotations

from vlkit.tasks.classification.task import TASK as CLASSIFICATION
from vlkit.tasks.grounding.task import TASK as GROUNDING
from vlkit.tasks.moment_retrieval.task import TASK as MOMENT_RETRIEVAL
from vlkit.tasks.retrieval.task import TASK as RETRIEVAL
from vlkit.tasks.task import Task
from vlkit.tasks.video_retrieval.task import TASK as VIDEO_RETRIEVAL
from vlkit.tasks.vqa.task import TASK as VQA

TASKS: dict[str, Task] = {
    task.name: task for task in (RETRIEVAL, VIDEO_RETRIEVAL, VQA, GROUNDING, CLASSIFICATION, MOMENT_RETRIEVAL)
}
