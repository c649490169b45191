"""Load several saved adapters; those that do not change their base share one copy of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.adapter_files import CONFIG_FILE
from vlkit.cli.show import visible
from vlkit.drawn.kinds import KINDS
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base, load_text_base
from vlkit.engine.checkpoint import load_adapter
from vlkit.tasks.classification.pipeline import ClassificationPipeline
from vlkit.tasks.classification.pipeline import load_zero_shot as load_zero_shot_classifier
from vlkit.tasks.load import load
from vlkit.tasks.registry import TASKS
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot

SHIPPED = Path(__file__).parents[1] / "assets" / "adapters"
"""One folder per task with the small adapter shipped in the package."""
CLIP_TEXT = "clip"
"""Name of the base's own text tower, in tasks with a separate choice of text model."""


@dataclass
class Models:
    """Loaded adapters: task -> name -> pipeline.

    Attributes:
        by_task: pipelines in the order in which their folders were given.
        zero_shot: the bases of the retrieval adapters without an adapter, by name; also in :attr:`retrieval`.
        zero_shot_classifiers: the same bases as classifiers of any class names; also in :attr:`classifiers`.
        bases: loaded bases, by their ``--base`` name.
        trained: number of trained values of each adapter, by task and name.
        configs: content of each adapter's config file, by task and name.
        fingerprints: hash of each adapter's config and trained values, by task and name; the config holds its base's.
        device: auto, cpu or cuda; the device of adapters added later.
    """

    by_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    zero_shot: dict[str, RetrievalPipeline] = field(default_factory=dict)
    zero_shot_classifiers: dict[str, ClassificationPipeline] = field(default_factory=dict)
    bases: list[str] = field(default_factory=list)
    trained: dict[str, dict[str, int]] = field(default_factory=dict)
    configs: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)
    device: str = "auto"
    _bases: _Bases = field(default_factory=lambda: _Bases(), repr=False)

    @property
    def classifiers(self) -> dict[str, ClassificationPipeline]:
        """Everything that classifies images: the adapters, then the bases without one."""
        return {**self.by_task.get("classification", {}), **self.zero_shot_classifiers}

    @property
    def adapters(self) -> dict[str, RetrievalPipeline]:
        """The retrieval adapters."""
        return self.by_task.get("retrieval", {})

    @property
    def retrieval(self) -> dict[str, RetrievalPipeline]:
        """Everything that embeds images and texts: the adapters, then the bases without one."""
        return {**self.adapters, **self.zero_shot}

    def shared_base(self, config: Mapping[str, Any]) -> ClipBase | None:
        """The contrastive base of an adapter as it is without the adapter; None unless one is loaded."""
        return self._bases.clip(*_image_base(config)) if self._bases.has_clip(*_image_base(config)) else None

    def has_base(self, name: str) -> bool:
        """Whether a base of that ``--base`` or ``--text_base`` name is loaded."""
        return bool({name, f"{name} text"} & self._bases.names) or name == CLIP_TEXT

    def open(self, folder: Path) -> Opened:
        """Load one more adapter, on the loaded bases where they fit; :meth:`keep` then offers it.

        Raises:
            UserError: the folder is not an adapter, or its base is unavailable.
        """
        return self._open(folder, *load_adapter(folder))

    def keep(self, opened: Opened) -> None:
        """Offer an opened adapter with the others, under its name."""
        task, name = opened.task, opened.name
        self.trained.setdefault(task, {})[name] = opened.trained
        self.configs.setdefault(task, {})[name] = opened.config
        self.fingerprints.setdefault(task, {})[name] = opened.fingerprint
        self.by_task.setdefault(task, {})[name] = opened.pipeline
        self.bases = sorted(map(visible, self._bases.names))

    def _open(self, folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> Opened:
        task = config["task"]
        pipeline = self._bases.load(folder, config, self.device)
        name = _new_name(folder, config, self.by_task.get(task, ()))
        trained = sum(tensor.numel() for tensor in tensors.values())
        return Opened(task, name, pipeline, config, trained, _fingerprint(config, tensors))


@dataclass(frozen=True)
class Opened:
    """A loaded adapter.

    Attributes:
        task: its task.
        name: a name that no other adapter of the task has.
        pipeline: the task's pipeline.
        config: content of its config file.
        trained: number of trained values.
        fingerprint: hash of ``config`` and the trained values.
    """

    task: str
    name: str
    pipeline: Any
    config: dict[str, Any]
    trained: int
    fingerprint: str


def shipped_adapters() -> list[Path]:
    """Folders of the adapters shipped in the package, by name of their task."""
    return sorted(path.parent for path in SHIPPED.glob(f"*/{CONFIG_FILE}"))


def load_models(folders: Iterable[Path] = (), device: str = "auto") -> Models:
    """Load the given adapters, and the shipped adapter of each task that has none among them.

    Args:
        folders: run or adapter folders.
        device: auto, cpu or cuda.

    Raises:
        UserError: a folder is not an adapter, or its base is unavailable.
    """
    found = {Path(folder): load_adapter(folder) for folder in folders}
    tasks = {config.get("task") for config, _ in found.values()}
    for folder in shipped_adapters():
        adapter = load_adapter(folder)
        if adapter[0].get("task") not in tasks:
            found[folder] = adapter
    models = Models(device=device)
    bases = models._bases
    for folder, (config, tensors) in found.items():
        models.keep(models._open(folder, config, tensors))
    for pipeline in models.adapters.values():
        base = pipeline.embedder.base
        if base.joint_dim is None:  # a pair of separate encoders is useless before training
            name = f"zero-shot {base.name}"
            if name not in models.zero_shot:
                shared = bases.clip(base.name)
                models.zero_shot[name] = load_zero_shot(base.name, device, shared)
                models.zero_shot_classifiers[name] = load_zero_shot_classifier(base.name, [*KINDS], device, base=shared)
    return models


class _Bases:
    """Bases loaded so far; safe to share between models that do not change them."""

    def __init__(self) -> None:
        self._clips: dict[tuple[str, str, str], ClipBase] = {}
        self._texts: dict[str, TextBase] = {}

    @property
    def names(self) -> set[str]:
        """Names of the loaded bases, as ``--base`` and ``--text_base`` accept them."""
        return {name for name, *_ in self._clips} | {f"{name} text" for name in self._texts}

    def clip(self, name: str, image_size: Any = None, context_length: Any = None) -> ClipBase:
        """The contrastive base of that name, for images and texts of its own or another size."""
        key = name, str(image_size), str(context_length)
        if key not in self._clips:
            self._clips[key] = load_base(name, image_size=image_size, context_length=context_length)
        return self._clips[key]

    def has_clip(self, name: str, image_size: Any = None, context_length: Any = None) -> bool:
        """Whether :meth:`clip` has loaded that one already."""
        return (name, str(image_size), str(context_length)) in self._clips

    def text(self, name: str) -> TextBase:
        """The text base of that name."""
        if name not in self._texts:
            self._texts[name] = load_text_base(name)
        return self._texts[name]

    def load(self, folder: Path, config: dict[str, Any], device: str) -> Any:
        """The adapter's pipeline, on shared bases if its method does not change them."""
        kinds = {options.get("kind") for options in config["adapters"].values()}
        if any(kind in ADAPTERS and ADAPTERS[kind].trains_base for kind in kinds):
            return load(folder, device)
        task = TASKS.get(config["task"])
        if task is not None:
            task.check_towers(config, folder)
        if task is not None and task.tower == "text":
            return load(folder, device, text_base=self.text(config["base"]["text"]["load"]))
        text = config["base"].get("text", {}).get("load", CLIP_TEXT)
        # Contrastive tasks read texts with the other tower of the same base.
        own_text = task is not None and task.own_text_base and text != CLIP_TEXT
        base = self.clip(*_image_base(config))
        return load(folder, device, base, text_base=self.text(text) if own_text else None)


def _image_base(config: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """Name, image size and context length of an adapter's contrastive base; None = the base's own."""
    image = config["base"]["image"]
    size = image.get("image_size") or config["preprocess"].get("image_size")
    return image["load"], size, config["base"].get("text", {}).get("context_length")


def _fingerprint(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    values = save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + values).hexdigest()


def _new_name(folder: Path, config: dict[str, Any], taken: Iterable[str]) -> str:
    """``SHERL`` for a shipped adapter, ``LORA (mine)`` for the run folder ``mine``; a number makes it unique."""
    kinds = sorted({options.get("kind", "?") for options in config.get("adapters", {}).values()})
    name = "+".join(kinds).upper()
    if folder.parent != SHIPPED:
        name += f" ({folder.resolve().name})"
    number, unique = 2, name
    while unique in taken:
        number, unique = number + 1, f"{name} {number}"
    return visible(unique)
