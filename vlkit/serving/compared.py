"""Models that can be compared on one input: the adapters of a task, and what answers without training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vlkit.encoders.bases import ClipBase
from vlkit.serving.costs import predicted_step_of
from vlkit.serving.models import Models
from vlkit.tasks.grounding.zero_shot import ZeroShotGrounding
from vlkit.tasks.vqa.zero_shot import ImageHidden, ZeroShotVqa

ZERO_SHOT, HIDDEN = "zero-shot ", ", image hidden"
"""Begin, and end, of the names of what was not trained."""


class Compared:
    """The models of each task by name: adapters, then their bases alone and adapters without the image.

    Args:
        models: the loaded adapters; more may arrive.
    """

    def __init__(self, models: Models) -> None:
        self.models = models
        self._baselines: dict[tuple[str, str], Any] = {}

    def __getitem__(self, task: str) -> dict[str, Any]:
        """Name -> pipeline; a task of none has none."""
        if task == "retrieval":
            return self.models.retrieval
        adapters = self.models.by_task.get(task, {})
        found = dict(adapters)
        for name, pipeline in adapters.items():
            config = self.models.configs[task][name]
            for baseline, make in _baselines(task, name, pipeline, config, self.models):
                if (task, baseline) not in self._baselines:
                    self._baselines[task, baseline] = make()
                found[baseline] = self._baselines[task, baseline]
        return found

    def default(self, task: str) -> tuple[str, str]:
        """The two models to begin with: the newest adapter, and its base alone (else what else there is)."""
        names, adapters = list(self[task]), list(self.models.by_task[task])
        newest = adapters[-1]
        base = ZERO_SHOT + self.models.configs[task][newest]["base"]["image"]["load"]
        others = [base, newest + HIDDEN, *reversed(adapters[:-1])]
        return newest, next((name for name in others if name in names), newest)

    def known(self, task: str, name: str) -> dict[str, Any]:
        """What is known of a model: ``base``, ``method`` (None: nothing was trained), ``trained_parameters``."""
        config = self.config(task, name)
        if config is None:
            return {"base": name.removeprefix(ZERO_SHOT), "method": None, "trained_parameters": 0}
        return {
            "base": config["base"]["image"]["load"],
            "method": config["adapters"]["image"]["kind"],
            "trained_parameters": self.models.trained[task][name.removesuffix(HIDDEN)],
        }

    def costs(self, task: str, name: str, batch_size: int) -> dict[str, Any]:
        """:meth:`known`, and ``saved_bytes``: the predicted saved activations of a training step, which takes seconds.

        Args:
            task: its task.
            name: its name in the task.
            batch_size: images of the step, with a text each.
        """
        config = self.config(task, name)
        saved = 0 if config is None else predicted_step_of(config, batch_size).saved_bytes
        return {**self.known(task, name), "saved_bytes": saved}

    def config(self, task: str, name: str) -> dict[str, Any] | None:
        """Config of the adapter that a model is; None if nothing was trained."""
        return self.models.configs[task].get(name.removesuffix(HIDDEN))


def _baselines(
    task: str, name: str, pipeline: Any, config: Mapping[str, Any], models: Models
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of what an adapter is compared with, and what makes them."""
    load = config["base"]["image"]["load"]
    if task == "vqa":
        zero_shot, vocabulary = models.zero_shot.get(ZERO_SHOT + load), pipeline.answerer.vocabulary
        if zero_shot is not None and vocabulary:
            yield ZERO_SHOT + load, lambda: ZeroShotVqa(zero_shot, vocabulary)
        if not config["head"].get("blind"):
            yield name + HIDDEN, lambda: ImageHidden(pipeline)
    if task == "grounding":
        base = models.shared_base(config)
        if base is not None and _has_cells(base):
            yield ZERO_SHOT + load, lambda: ZeroShotGrounding(base, models.device)


def _has_cells(base: ClipBase) -> bool:
    """Whether every token of the base is in the space of its embeddings."""
    return base.joint_dim is None and base.image.joint_dim is not None
