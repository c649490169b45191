"""Text to text: the models, and their entry in the adapter config."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

from vlkit.adapters.facts import MethodOptions
from vlkit.data.text_task import TextTask, text_task_of
from vlkit.encoders.bases import TextBase
from vlkit.errors import UserError
from vlkit.tasks.generation import Reformulator


@dataclass
class WriteOptions:
    """Write the label with T5's decoder (text to text)."""

    kind: Literal["write"] = "write"
    source_tokens: int = 128
    """Longest text in tokens; the rest is cut."""

    def __post_init__(self) -> None:
        if self.source_tokens < 2:
            raise UserError(f"--head.source_tokens {self.source_tokens}: must be at least 2")


@dataclass
class ClassifyOptions:
    """A linear classifier (or one number) on the encoder's pooled state; for any encoder and method."""

    kind: Literal["classify"] = "classify"
    source_tokens: int = 128
    """Longest text in tokens; the rest is cut."""
    dropout: float = 0.1
    """Dropout rate before the classifier."""

    def __post_init__(self) -> None:
        if self.source_tokens < 2:
            raise UserError(f"--head.source_tokens {self.source_tokens}: must be at least 2")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--head.dropout {self.dropout}: must be at least 0 and less than 1")


TEXT_HEADS = {"write": WriteOptions, "classify": ClassifyOptions}
"""Name for ``--head.kind`` -> its options."""
HeadOptions = WriteOptions | ClassifyOptions


class TextClassifier(nn.Module):
    """An adapted encoder, and a linear layer on its pooled state.

    Args:
        text: adapted encoder.
        width: width of its pooled state.
        outputs: C classes, or 1 for a number.
        dropout: dropout rate before the layer.
    """

    def __init__(self, text: nn.Module, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.text = text
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, outputs))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, C] float32, or numbers [B, 1], of texts [B, L] int64."""
        return self.head(self.text(ids).pooled).float()


Model = Reformulator | TextClassifier


def build_model(base: TextBase, task: TextTask, adapter: MethodOptions, head: HeadOptions) -> Model:
    """Adapt a text base to a task.

    Args:
        base: the loaded base; its towers become part of the model.
        task: the task.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: options of one of :data:`TEXT_HEADS`.

    Raises:
        UserError: the method does not fit the base or the head.
    """
    if isinstance(head, ClassifyOptions):
        encoder = adapter.build(base.encoder, "pooled")
        return TextClassifier(encoder, base.encoder.out_dim, max(1, len(task.labels)), head.dropout)
    if base.decoder is None:
        raise UserError(
            f"--head.kind write: --text_base {base.name} has no decoder; give a T5, or --head.kind classify"
        )
    if not adapter.feeds_decoder:
        raise UserError(f"--adapter.kind {adapter.kind}: adapts no decoder; use --head.kind classify")
    return Reformulator(*adapter.build_stacks(base.encoder, base.decoder))


def identity_of(base: TextBase, head: HeadOptions) -> dict[str, dict[str, Any]]:
    """Identity of a model's towers: ``text`` and, for a writing head, ``decoder``."""
    towers = {{"encoder": "text"}.get(tower, tower): who for tower, who in base.identity.items()}
    return {
        tower: {**who, "load": base.name}
        for tower, who in towers.items()
        if tower == "text" or isinstance(head, WriteOptions)
    }


def adapter_config(
    base: TextBase, task: TextTask, adapter: MethodOptions, head: HeadOptions, metrics: dict[str, float]
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same base."""
    return {
        "task": "text",
        "base": identity_of(base, head),
        "adapters": {"text": asdict(adapter)},
        "head": {**asdict(head), "task": task.to_dict()},
        "preprocess": {},
        "metrics": metrics,
    }


def head_options(values: dict[str, Any]) -> tuple[HeadOptions, TextTask]:
    """Options of the head, and the task, from the ``head`` of an adapter's config.

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    given = dict(values)
    try:
        task = text_task_of(given.pop("task"), "vlkit_adapter.json")
        return TEXT_HEADS[given["kind"]](**given), task
    except (KeyError, TypeError) as error:
        raise UserError(f"vlkit_adapter.json: the options of 'head' do not fit ({error}); update vlkit") from None
