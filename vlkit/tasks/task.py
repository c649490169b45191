"""The description of a task for the rest of vlkit: each folder has one in ``task.py``, ``registry.py`` lists all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.options import ADAPTERS
from vlkit.data.manifest import Dataset
from vlkit.data.records import RecordKind
from vlkit.drawn.prepared import Recipe, demo_dataset
from vlkit.errors import UserError
from vlkit.tasks.tables import HOLD_OUT, form_of, prepared_once


@dataclass(frozen=True)
class Task:
    """Facts about a task.

    Attributes:
        name: name of the task, as in ``dataset.json`` and ``vlkit_adapter.json``.
        records: fields and medium of the records in its datasets.
        scores: heading -> metric, the columns of a comparison of methods; the first is the task's main score.
        open_adapter: (config, tensors, folder, fabric, base, text_base) -> the pipeline of a saved adapter.
        datasets: the task whose prepared datasets it reads; None = its own.
        demo: how its demo dataset is made from the drawn world; None = it has none.
        tower: the tower that every adapter of the task has: image, or text for a task without images.
        pipeline_tag: what the Hugging Face hub calls the task.
        own_text_base: whether the text model is chosen separately from the contrastive base.
        controls: name -> flags (``name=value``) of its script: rows of a comparison that are no method.
        control_scripts: control -> the script of the task that runs it, if that is not ``train.py``; it takes
            ``output``, ``seed`` and ``resume``, and the training script's ``base``, ``image_size`` and ``data.*``, and
            writes ``metrics.json``.
        methods: kind -> options of the methods it can train; a task may have further ones.
    """

    name: str
    records: RecordKind
    scores: Mapping[str, str]
    open_adapter: Callable[..., Any]
    datasets: str | None = None
    demo: Recipe | None = None
    tower: str = "image"
    own_text_base: bool = False
    pipeline_tag: str = "feature-extraction"
    controls: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    control_scripts: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, type[MethodOptions]] = field(default_factory=lambda: ADAPTERS)

    def check_towers(self, config: Mapping[str, Any], folder: Path) -> None:
        """Check that an adapter's config names the task's tower.

        Raises:
            UserError: it does not.
        """
        for key in ("base", "adapters"):
            if self.tower not in config[key]:
                raise UserError(f"{folder}: field '{key}.{self.tower}' has no valid value; copy the adapter again")

    def dataset(self, root: Path | None, columns: str = "", hold_out: float | None = None, **demo: Any) -> Dataset:
        """The prepared dataset in ``root`` or of the rows or tars there, or the demo dataset; made on first use.

        Args:
            root: value of ``--data.root``.
            columns: value of ``--data.columns``: which column of rows, or field of a tar's .json, holds what.
            hold_out: value of ``--data.hold_out``: share of rows or tars for each split that they do not name.
            demo: options of :func:`vlkit.drawn.prepared.demo_dataset`.

        Raises:
            UserError: the folder holds no dataset or one for another task, or the task has no demo dataset.
        """
        if root is None and self.demo is None:
            raise UserError(f"task {self.name} has no demo dataset; give --data.root DIR, a prepared dataset")
        name = self.datasets or self.name
        form = None if root is None else form_of(root)
        if root is not None and form is not None:
            root = prepared_once(form, root, name, columns, HOLD_OUT if hold_out is None else hold_out)
        elif columns:
            raise UserError(f"--data.columns {columns}: {root or 'the demo dataset'} has no columns; leave it out")
        elif hold_out is not None:
            raise UserError(f"--data.hold_out: {root or 'the demo dataset'} has its splits; leave it out")
        return Dataset.open(root or demo_dataset(name, **demo), name)
