"""What a run does instead of training steps, for heads that are computed from features."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.engine.progress import peak_memory_bytes
from vlkit.engine.run import Run
from vlkit.engine.state import FitResult
from vlkit.memory import StepMemory, peak_bytes
from vlkit.tasks.classification.closed_form import fill_ridge, search_cache, solve_ridge
from vlkit.tasks.classification.data import LabelledImages, labels_of
from vlkit.tasks.classification.evaluate import Labeller, feature_records
from vlkit.tasks.classification.heads import CacheHead, CacheOptions, ClassifierOptions, RidgeHead, RidgeOptions
from vlkit.tasks.classification.model import Classifier

log = logging.getLogger(__name__)


def fill_head(labeller: Labeller, head: ClassifierOptions, dataset: Dataset, train: Sequence[Record]) -> float:
    """Compute a head that needs the features of the training images (cache, ridge); others stay as they are.

    Returns:
        Seconds that it took.
    """
    began, module = time.monotonic(), labeller.model.head
    if not isinstance(head, CacheOptions | RidgeOptions):
        return 0.0
    labels = labels_of(dataset, train)
    views = head.views if isinstance(head, CacheOptions) else 1
    features = feature_records(labeller, dataset, train, "training images", views)
    if isinstance(module, CacheHead):
        module.fill(features, labels)
    elif isinstance(module, RidgeHead) and isinstance(head, RidgeOptions):
        solution = solve_ridge(features, labels, len(module.bias), head.penalty)
        fill_ridge(module, solution)
        right = 100 * float((solution.left_out.argmax(1) == labels).float().mean())
        log.info("ridge penalty %.3g; leave-one-out top-1 on the training images %.1f", solution.penalty, right)
    return time.monotonic() - began


def choose_cache(labeller: Labeller, head: CacheOptions, dataset: Dataset, validation: Sequence[Record]) -> None:
    """Choose the cache head's alpha and beta on the validation images."""
    if head.alpha is not None and head.beta is not None:
        return
    module = labeller.model.head
    assert isinstance(module, CacheHead)
    features = feature_records(labeller, dataset, validation, "validation images")
    alpha, beta = search_cache(module, head, features, labels_of(dataset, validation))
    log.info("chosen on %d validation images: alpha %.3g, beta %.3g", len(validation), alpha, beta)


def finished(run: Run, evaluate: Callable[[], Mapping[str, float]] | None, count: int, seconds: float) -> FitResult:
    """The result of a run without training steps; it is logged as such.

    Args:
        run: the run.
        evaluate: metrics on the validation images; None = there are none.
        count: training images.
        seconds: time to compute the head.
    """
    metrics = dict(evaluate()) if evaluate else {}
    if run.folder.writes:
        run.folder.rewind_log(0, -1)  # of an earlier try with --resume
    run.log(step=0, epoch=0.0, split="val", **metrics)
    run.folder.draw_curves("top1")
    speed = count / seconds if seconds else 0.0
    return FitResult(metrics, 0, 0, seconds, speed, peak_memory_bytes(run.fabric.device))


def closed_form_memory(run: Run, model: Classifier, examples: LabelledImages, batch_size: int) -> StepMemory:
    """Memory without training steps: the forward of one batch without gradient. Values that were computed from the
    training images count as trained.
    """
    pixels = torch.stack([examples[i][0] for i in range(min(batch_size, len(examples)))])
    pixels = run.fabric.to_device(pixels)

    def forward() -> None:
        with torch.no_grad(), run.fabric.autocast():
            model(pixels)

    forward()  # the first run also allocates library workspaces, which stay
    tensors, computed = [*model.parameters(), *model.buffers()], isinstance(model.head, CacheHead | RidgeHead)
    return StepMemory(
        trainable_parameters=sum(p.numel() for p in model.head.parameters()) if computed else 0,
        total_parameters=sum(p.numel() for p in model.parameters()),
        parameter_bytes=sum(t.numel() * t.element_size() for t in tensors),
        optimizer_bytes=0,
        saved_bytes=0,
        peak_bytes=peak_bytes(lambda _: forward(), run.fabric.device),
    )
