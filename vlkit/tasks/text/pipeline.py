"""Pipeline for texts: a text or a pair of texts -> a label or a number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.options import adapter_options
from vlkit.data.records import Record
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_text_base
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError
from vlkit.tasks.batching import Batching
from vlkit.tasks.text.evaluate import Label, Labeller
from vlkit.tasks.text.model import build_model, head_options, identity_of


class TextPipeline:
    """``model.label("a cat on a mat", "a mat under a cat")`` -> ``("entailment", 0.98)``.

    Safe to call from several threads; calls that arrive while the model is busy are batched.

    Args:
        labeller: model, base and device.
        name: name used in messages.
        metrics: the metrics recorded in the adapter's config.
    """

    def __init__(self, labeller: Labeller, name: str, metrics: dict[str, float]) -> None:
        self.labeller, self.name, self.metrics = labeller, name, metrics
        self.task = labeller.task
        self._together = Batching(labeller.label, labeller.batch_size)

    def label(self, text: str, text2: str | None = None) -> tuple[str, float]:
        """The class of a text or a pair of texts with its probability; for a regression the number, as text.

        Raises:
            UserError: a text is blank, or the task needs another number of texts.
        """
        found = self.labels([(text, text2)])[0]
        return found.text, found.probability

    def labels(self, pairs: Sequence[tuple[str, str | None]]) -> list[Label]:
        """:meth:`label` for several texts or pairs."""
        records: list[Record] = []
        for text, text2 in pairs:
            if (text2 is not None) != self.task.pairs:
                count = "two texts" if self.task.pairs else "one text"
                raise UserError(f"{self.name}: task {self.task.word!r} reads {count}; give {count}")
            given = {"text": text} if text2 is None else {"text": text, "text2": text2}
            if not all(part.strip() for part in given.values()):
                raise UserError("a text is blank; write something")
            records.append(given)
        return self._together(records)


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> TextPipeline:
    """Attach a saved adapter to its base; see :func:`vlkit.tasks.load.load`."""
    text_base = text_base or load_text_base(config["base"]["text"]["load"])
    with built_for(tensors, folder, text_base.encoder.model):
        head, task = head_options(config["head"])
        check_base(config, identity_of(text_base, head), folder)
        model = build_model(text_base, task, adapter_options(config["adapters"]["text"]), head)
    load_trained(model, tensors, folder)
    fabric.setup_module(model.requires_grad_(False)).eval()
    return TextPipeline(Labeller(model, text_base, task, head, fabric), folder.name, config.get("metrics", {}))
