"""Visual grounding by the base alone: what an adapter is compared with."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.adapters.linear import LinearOptions
from vlkit.data.images import ImageInput, as_rgb
from vlkit.encoders.bases import ClipBase
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.tasks.grounding.data import BoxTransform
from vlkit.tasks.grounding.pipeline import Candidate


class ZeroShotGrounding:
    """An untrained contrastive base that grounds: a box around the image cells that are similar to the text.

    The similarities are those of the base's joint space (MaskCLIP, Zhou et al., ECCV 2022), with which
    ``--fusion.match`` lets an adapter begin (:class:`vlkit.tasks.fusion.Match`).

    Args:
        base: the base; its towers have one joint space.
        device: auto, cpu or cuda.
    """

    def __init__(self, base: ClipBase, device: str = "auto") -> None:
        self.base, self.fabric = base, make_fabric(device)
        self.transform = BoxTransform(base.preprocess, "squash")
        self.image, self.text = (LinearOptions().build(tower, "tokens").eval() for tower in (base.image, base.text))
        for tower in (self.image, self.text):
            tower.to(self.fabric.device)

    @torch.no_grad()
    def ground(self, image: ImageInput, text: str, candidates: int = 1) -> Candidate | list[Candidate]:
        """The box for a text; its score is the cosine similarity of the best cell, which is no probability.

        Args:
            image: path or PIL image.
            text: what to find.
            candidates: if more than 1, the box comes in a list; there is never a second one.

        Raises:
            UserError: the text is blank, or the base has no image cells.
            vlkit.data.images.MediaError: the file is not a readable image; names it and the reason.
        """
        if not text.strip():
            raise UserError("the text is blank; say what to find in the image")
        opened = as_rgb(image)
        pixels = self.transform(opened, torch.empty(0, 4))[0].unsqueeze(0)
        with self.fabric.autocast():
            seen = self.image(self.fabric.to_device(pixels))
            read = self.text(self.fabric.to_device(self.base.text.trim(self.base.tokenize([text]))))
            if seen.grid is None:
                raise UserError(f"base {self.base.name}: outputs no image cells, so grounding is not possible with it")
            rows, columns = seen.grid
            cells = F.normalize(seen.joint[0, -rows * columns :].float(), dim=-1)
            similar = (cells @ F.normalize(read.pooled[0].float(), dim=-1)).unflatten(0, (rows, columns)).cpu()
        corners = self.transform.fit.to_image(box_around(similar).unsqueeze(0), opened.width, opened.height)
        box = np.clip(corners[0].numpy(), 0, np.array([opened.width, opened.height] * 2)).tolist()
        found = Candidate(tuple(box), float(similar.max()))
        return found if candidates == 1 else [found]


def box_around(similar: Tensor) -> Tensor:
    """The box around the most similar cell and the connected cells above the middle of the range of similarities.

    Args:
        similar: [rows, columns].

    Returns:
        float32 [4]: x1, y1, x2, y2 as shares of the image.
    """
    from scipy import ndimage  # takes long to import, and few who import this module locate without training

    values = similar.double().numpy()
    parts, _ = cast(Any, ndimage).label(values >= (values.max() + values.min()) / 2)
    mine = np.argwhere(parts == parts[np.unravel_index(values.argmax(), values.shape)])
    (y1, x1), (y2, x2) = mine.min(0), mine.max(0) + 1
    rows, columns = values.shape
    return torch.tensor([x1 / columns, y1 / rows, x2 / columns, y2 / rows], dtype=torch.float32)
