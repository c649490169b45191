"""A trained coordinator (BlackVIP) as files, and loaded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlkit.adapters.blackvip.coordinator import Coordinator
from vlkit.adapters.blackvip.decoder import BorderPrompt
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import Preprocess
from vlkit.encoders.load import load_base
from vlkit.errors import UserError
from vlkit.files import read_json, whole_file, write_json

CONFIG, WEIGHTS = "coordinator.json", "coordinator.safetensors"
FORMAT = "vlkit-coordinator"


@dataclass(frozen=True)
class Prompter:
    """A trained coordinator with the way its images are read.

    Attributes:
        coordinator: in eval mode.
        preprocess: size and normalisation of the target's images.
        classes: names of the classes it was trained for.
        target: the black box that it was trained on, see :func:`save_coordinator`; empty = not recorded.
    """

    coordinator: Coordinator
    preprocess: Preprocess
    classes: Sequence[str]
    target: dict[str, Any] = field(default_factory=dict)

    def prompt(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> prompted pixels [B, 3, H, W] float32, 0 .. 1, to send to the black box."""
        transform = image_transform(self.preprocess)
        return self.prompted(torch.stack([transform(image) for image in images]))

    @torch.no_grad()
    def prompted(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> prompted pixels, 0 .. 1."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        return (self.coordinator(pixels) * std + mean).clamp(0, 1)


def save_coordinator(
    folder: Path,
    coordinator: Coordinator,
    encoder: str,
    preprocess: Preprocess,
    classes: Sequence[str],
    target: dict[str, Any],
) -> None:
    """Write ``coordinator.safetensors`` (the decoder with its batch norm statistics) and ``coordinator.json``.

    Args:
        folder: where to.
        coordinator: the trained one.
        encoder: base that it reads, as :func:`~vlkit.encoders.load.load_base` takes it.
        preprocess: size and normalisation of the target's images.
        classes: class names, in the order of the target's scores.
        target: what answers: ``{"base": NAME, "image_size": …, "templates": […], "texts": {class: […]}}`` of a base in
            this process, or ``{"url": …, "gives": …}`` of a service.
    """
    decoder = coordinator.decoder
    with whole_file(folder / WEIGHTS) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in decoder.state_dict().items()}, temporary)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "format_version": 1,
            "encoder": encoder,
            "feature": coordinator.feature,
            "border": decoder.width if isinstance(decoder, BorderPrompt) else 0,
            "channels": getattr(decoder, "channels", 32),
            "arch": getattr(decoder, "arch", "vit"),
            "eps": coordinator.eps,
            "preprocess": preprocess.to_dict(),
            "classes": list(classes),
            "target": target,
        },
    )


def load_coordinator(folder: str | Path) -> Prompter:
    """Load a trained coordinator.

    Raises:
        UserError: the folder holds none, or its files are damaged.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG} there; give the folder of a run of tasks/classification/black_box.py")
    about = read_json(folder / CONFIG)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG}: field 'format' is not {FORMAT!r}; not a coordinator of vlkit")
    try:
        base, preprocess = load_base(about["encoder"]), Preprocess.from_dict(about["preprocess"])
        coordinator = Coordinator(
            base.image,
            preprocess.mean,
            preprocess.std,
            preprocess.size,
            about["eps"],
            about["channels"],
            about["arch"],
            about["feature"],
            base.preprocess.size,
            about["border"],
        )
        coordinator.decoder.load_state_dict(load_file(folder / WEIGHTS))
        return Prompter(coordinator.eval(), preprocess, list(about["classes"]), dict(about.get("target", {})))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{folder}: the coordinator cannot be read ({reason}); copy both files again") from None
