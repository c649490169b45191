"""A base on the meta device, for predictions about models whose weights do not fit or take long to initialise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import open_clip

from vlkit.encoders.bases import ClipBase, Preprocess, named_resize
from vlkit.encoders.hub import offline_text_cfg, quiet
from vlkit.encoders.load import load_base
from vlkit.encoders.shapes_only import shapes_only
from vlkit.encoders.stage import stage_text, stage_vision
from vlkit.encoders.stored_layers import store_towers
from vlkit.encoders.stored_weights import named_format
from vlkit.encoders.tokenizer import ClipTokenizer
from vlkit.encoders.weights import read_weights


def shape_base(name: str, image_size: int | None = None) -> ClipBase:
    """The base that :func:`vlkit.encoders.load.load_base` would load, with every tensor on the meta device.

    If ``name`` is an open_clip architecture (with or without weights after the colon), no weights are allocated or
    read; any other base is loaded first. The result has no fingerprints. ``image_size``: see ``load_base``.

    Raises:
        UserError: as ``load_base``.
    """
    sized, number_format = named_format(name)
    bare, resize_mode = named_resize(sized)
    base = _shape_base(bare, image_size)
    base.name = name
    if resize_mode is not None:
        base.preprocess = replace(base.preprocess, resize_mode=resize_mode)
    store_towers({"image": base.image, "text": base.text}, base.identity, number_format)
    return base


def _shape_base(name: str, image_size: int | None) -> ClipBase:
    arch, _, weights = name.partition(":")
    arch = arch.replace("/", "-")
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if arch not in open_clip.list_models() or (weights and weights not in tags and not Path(weights).is_file()):
        base = load_base(name, image_size=image_size)  # also raises the error for an unknown name
        base.image.to("meta")
        base.text.to("meta")
        return base
    config = cast(dict[str, Any], open_clip.get_model_config(arch))
    # The weights determine the activation, and QuickGELU saves more for backward than GELU.
    options: dict[str, Any] = {} if image_size is None else {"force_image_size": image_size}
    if weights in tags:
        options["quick_gelu"] = bool(open_clip.get_pretrained_cfg(arch, weights).get("quick_gelu", False))
    elif weights and read_weights(Path(weights), arch).quick_gelu:
        options["quick_gelu"] = True
    with offline_text_cfg(config["text_cfg"]) as text_cfg, quiet(), shapes_only():
        model = open_clip.create_model(arch, pretrained_text=False, text_cfg=text_cfg, device="meta", **options).eval()
    return ClipBase(
        name=name,
        image=stage_vision(model),
        text=stage_text(model),
        preprocess=Preprocess.from_dict(cast(Any, model.visual).preprocess_cfg),
        tokenize=ClipTokenizer(arch, config["text_cfg"]),
        logit_scale=math.log(1 / 0.07),
        logit_bias=None,
        identity={},
    )
