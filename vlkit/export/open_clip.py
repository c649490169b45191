"""Adapters merged into the weights of their open_clip base, for methods that leave nothing beside it.

    OUTPUT/open_clip_model.safetensors   ``open_clip.create_model(ARCH, pretrained=FILE)``
    OUTPUT/open_clip_config.json         with it, ``open_clip.create_model("local-dir:OUTPUT")``

The trained projections of the heads are multiplied into the base's own. The trained temperature replaces the base's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import kinds_with, one_of
from vlkit.adapters.projections import joined_state
from vlkit.adapters.tuning import TunedEncoder
from vlkit.encoders.hub import quiet
from vlkit.encoders.load import build_random
from vlkit.errors import UserError
from vlkit.export.merge import merge_
from vlkit.export.source import Source, new_folder
from vlkit.files import write_json
from vlkit.tasks.two_tower import MAX_LOGIT_SCALE

MODEL, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
LARGEST_DIFFERENCE = 1e-4


@torch.no_grad()
def export_open_clip(source: Source, output: Path) -> float:
    """Merge an adapter into its base, write open_clip's state dict, and compare what open_clip loads from it.

    Args:
        source: the adapter; its base is changed.
        output: new folder.

    Returns:
        The largest difference of a value of an embedding.

    Raises:
        UserError: the base is none of open_clip's architectures, the method or the heads cannot be merged, or the
            embeddings differ.
    """
    base, model = source.base, source.model
    arch = base.identity["image"]["name"]
    if base.identity["image"]["library"] != "open_clip" or arch not in open_clip.list_models():
        raise UserError(f"--to open_clip: base {base.name} is none of open_clip's architectures; use --to onnx")
    _check_heads(source)
    size, tokens = base.preprocess.size[0], base.tokenize(["a photo of a dog", "a"])
    pixels = torch.randn(2, 3, *base.preprocess.size, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([model.embed_images(pixels), model.embed_texts(tokens)])
    fast = any(isinstance(module, open_clip.transformer.QuickGELU) for module in base.image.modules())
    config: Any = {**cast(dict[str, Any], open_clip.get_model_config(arch)), "quick_gelu": fast}
    config["vision_cfg"] = {**config["vision_cfg"], "image_size": size}
    whole = build_random(arch, size, {"quick_gelu": fast})
    state = _merged_state(source, whole)
    wrong = sorted(set(state) ^ set(whole.state_dict()))
    if wrong:
        raise UserError(f"{_refusal(source)} (it has {wrong[0]} beside the base)")
    with new_folder(output) as folder:
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / MODEL)
        write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": base.preprocess.to_dict()})
        with quiet():
            loaded: Any = open_clip.create_model(
                arch, pretrained=str(folder / MODEL), force_image_size=size, force_quick_gelu=fast
            ).eval()
        found = torch.cat([loaded.encode_image(pixels, normalize=True), loaded.encode_text(tokens, normalize=True)])
        difference = float((found - expected).abs().max())
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{output}: open_clip's embeddings differ from the adapter's by {difference:.1e}; nothing written"
            )
    return difference


def _check_heads(source: Source) -> None:
    for encoder in (source.model.image, source.model.text):
        alone = isinstance(encoder, AdaptedEncoder) and not any(True for _ in encoder.adapter.parameters())
        if not (isinstance(encoder, TunedEncoder) or alone):
            raise UserError(_refusal(source))
    if source.head.pool != "base":
        raise UserError(
            f"--to open_clip: the heads pool by {source.head.pool}, which open_clip cannot; use --to onnx or "
            "sentence-transformers, or train with --head.pool base"
        )


def _refusal(source: Source) -> str:
    return (
        f"--to open_clip: {source.options.kind} adds modules beside the base, so it cannot be merged into its weights; "
        f"use --to onnx or sentence-transformers (merged are {one_of(['linear', *kinds_with('trains_base')])})"
    )


def _merged_state(source: Source, whole: nn.Module) -> dict[str, Tensor]:
    """The state dict of the whole open_clip model, with adapter and heads merged in."""
    base, model = source.base, source.model
    merge_(model)
    visual, text = joined_state(base.image.model), joined_state(base.text.model)
    _project(visual, model.image_head.projection, ("proj", "head.proj.weight", "head.mlp.fc2.weight"))
    _project(
        text, model.text_head.projection, ("text_projection", "text_projection.weight", "proj.weight", "proj.2.weight")
    )
    inside = "text." if hasattr(whole, "text") else ""
    state = {f"visual.{name}": value for name, value in visual.items()}
    state |= {f"{inside}{name}": value for name, value in text.items()}
    own = whole.state_dict()
    state["logit_scale"] = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).reshape(own["logit_scale"].shape)
    if "logit_bias" in own:
        state["logit_bias"] = model.logit_bias.reshape(own["logit_bias"].shape)
    return state


def _project(state: dict[str, Tensor], head: nn.Module, names: tuple[str, ...]) -> None:
    """Multiply a head's projection [E, E] into the tower's own, in ``state``.

    Raises:
        UserError: the tower has no projection into which it could go.
    """
    if not isinstance(head, nn.Linear):
        return
    name = next((name for name in names if name in state), None)
    if name is None:
        raise UserError(
            "--to open_clip: this tower has no projection that could take the head's; use --to onnx or "
            "sentence-transformers, or train with --head.projection false"
        )
    if not name.endswith("weight"):  # a parameter [D, E], multiplied from the right
        state[name] = state[name] @ head.weight.T
        return
    state[name] = head.weight @ state[name]
    bias = f"{name.removesuffix('weight')}bias"
    if bias in state:
        state[bias] = head.weight @ state[bias]
