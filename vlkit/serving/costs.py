"""Predicted memory of one training step: for a form that asks before it trains, and of an adapter as it was trained."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.options import adapter_options
from vlkit.errors import UserError
from vlkit.memory.step import StepMemory
from vlkit.serving.kept_predictions import ACTIVE_SHARE, kept_prediction, predicting
from vlkit.tasks.classification.step_bench import ClassifierBench
from vlkit.tasks.grounding import model as grounding
from vlkit.tasks.grounding.step_bench import GroundingBench
from vlkit.tasks.retrieval.step_bench import ContrastiveBench
from vlkit.tasks.vqa import model as vqa
from vlkit.tasks.vqa.step_bench import VqaBench


def predicted_step(base: str, options: MethodOptions, batch_size: int, task: str = "retrieval") -> StepMemory:
    """Memory of one training step on the CPU in float32, predicted without running it; cached.

    Args:
        base: its ``--base`` name.
        options: the method.
        batch_size: examples per step.
        task: retrieval (both towers, texts of full length) or classification (the image tower and a linear head).

    Raises:
        UserError: no such base, or the method does not fit it.
    """
    return _predicted(_json({"task": task, "base": base}), _json(dataclasses.asdict(options)), batch_size)  # pyright: ignore[reportArgumentType]


def predicted_step_of(config: Mapping[str, Any], batch_size: int) -> StepMemory:
    """Memory of one training step of a saved adapter of task retrieval, vqa or grounding; see :func:`predicted_step`.

    The whole step is predicted: towers, fusion, head and loss, with one text of full length per image.

    Args:
        config: content of the adapter's config file.
        batch_size: images per step.
    """
    task, image, head = config["task"], config["base"]["image"], dict(config["head"])
    what: dict[str, Any] = {"task": task, "base": image["load"]}
    if task in ("vqa", "grounding"):
        size = image.get("image_size") or config.get("preprocess", {}).get("image_size")
        answers = len(head.pop("answers", ()))
        what |= {"head": head, "text_base": config["base"]["text"]["load"], "answers": answers, "image_size": size}
    options = adapter_options(config["adapters"]["image"])
    return _predicted(_json(what), _json(dataclasses.asdict(options)), batch_size)  # pyright: ignore[reportArgumentType]


@functools.lru_cache(maxsize=256)
def _predicted(what: str, options: str, batch_size: int) -> StepMemory:
    def predict() -> StepMemory:
        with predicting():
            bench = _bench(what)
            return bench.memory(bench.model(adapter_options(json.loads(options))), batch_size)

    return kept_prediction({"what": what, "options": options, "batch": batch_size}, predict)


@functools.lru_cache(maxsize=3)
def _bench(what: str) -> ContrastiveBench:
    bench = _new_bench(json.loads(what))
    bench.active_share = ACTIVE_SHARE
    return bench


def _new_bench(given: dict[str, Any]) -> ContrastiveBench:
    task, base = given["task"], given["base"]
    cpu: dict[str, Any] = {"predicts": True, "device": "cpu", "precision": "32-true"}
    if task == "retrieval":
        return ContrastiveBench(base, **cpu)
    if task == "classification":
        return ClassifierBench(base, **cpu)
    cpu |= {"text_base": given["text_base"], "image_size": given["image_size"]}
    if task == "vqa":
        head, fusion, _, images = vqa.head_options({**given["head"], "answers": []})
        return VqaBench(base, head=head, fusion=fusion, answers=given["answers"], images=images, **cpu)
    if task == "grounding":
        head, fusion = grounding.head_options(given["head"])
        return GroundingBench(base, fusion=fusion, head=head, **cpu)
    raise UserError(f"task {task}: no step of it can be predicted")


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
