"""SigLIP 2 for images of any shape (NaFlex, ``model_type`` siglip2) as a SigLIP for square images of one size.

With square images no patch is padding, so the two models compute the same: the linear layer over the pixels of a patch
is a convolution, and the position embeddings are resized once instead of for each image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlkit.encoders.shapes_only import shapes_only

KIND, MODEL = "siglip2", "Siglip2Model"  # SigLIP 2 for images of one size has model_type siglip


def square_siglip(model: Any, side: int | None = None) -> Any:
    """The weights of a NaFlex model in a ``SiglipModel``.

    Args:
        model: a ``Siglip2Model``.
        side: of the images in pixels; None = as many patches as the model has position embeddings.

    Returns:
        ``SiglipModel`` in float32.

    Raises:
        ValueError: ``side`` is not a multiple of the patch size.
    """
    from transformers import SiglipConfig, SiglipModel

    vision, parts = model.config.vision_config, model.vision_model.embeddings
    patch, own = vision.patch_size, parts.position_embedding_size
    if side is not None and side % patch:
        raise ValueError(f"the side must be a multiple of {patch}, the side of a patch")
    cells = own if side is None else side // patch
    text = {**model.config.text_config.to_dict(), "model_type": "siglip_text_model"}
    sized = {**vision.to_dict(), "model_type": "siglip_vision_model", "image_size": cells * patch}
    with shapes_only():
        square = SiglipModel(SiglipConfig(text_config=text, vision_config=sized))
    state = model.state_dict()
    weight: Tensor = parts.patch_embedding.weight.detach()  # over the rows of a patch, its columns, and the channels
    positions: Tensor = parts.position_embedding.weight.detach()
    if cells != own:
        shapes = torch.tensor([[cells, cells]])
        grid = positions.reshape(own, own, -1)
        positions = parts.resize_positional_embeddings(grid, shapes, max_length=cells**2)[0]
    place = "vision_model.embeddings"
    state[f"{place}.patch_embedding.weight"] = weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2).contiguous()
    state[f"{place}.position_embedding.weight"] = positions
    square.load_state_dict(state, assign=True)
    for half in (square.vision_model, square.text_model):
        embeddings: Any = half.embeddings  # has a buffer that is not in the state
        length = embeddings.position_embedding.num_embeddings
        embeddings.position_ids = torch.arange(length).expand(1, -1)
    return square
