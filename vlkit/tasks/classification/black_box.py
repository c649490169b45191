"""A trained coordinator (BlackVIP) as files, and loaded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlkit.adapters.blackvip.coordinator import Coordinator
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
    """

    coordinator: Coordinator
    preprocess: Preprocess
    classes: Sequence[str]

    @torch.no_grad()
    def prompt(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images -> prompted pixels [B, 3, H, W] float32, 0 .. 1, to send to the black box."""
        transform = image_transform(self.preprocess)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        return (self.coordinator(torch.stack([transform(image) for image in images])) * std + mean).clamp(0, 1)


def save_coordinator(
    folder: Path, coordinator: Coordinator, encoder: str, preprocess: Preprocess, classes: Sequence[str]
) -> None:
    """Write ``coordinator.safetensors`` (the decoder with its batch norm statistics) and ``coordinator.json``."""
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
            "channels": decoder.channels,
            "arch": decoder.arch,
            "eps": coordinator.eps,
            "preprocess": preprocess.to_dict(),
            "classes": list(classes),
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
        )
        coordinator.decoder.load_state_dict(load_file(folder / WEIGHTS))
        return Prompter(coordinator.eval(), preprocess, list(about["classes"]))
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{folder}: the coordinator cannot be read ({reason}); copy both files again") from None
