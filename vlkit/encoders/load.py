"""Load bases by name: ``--base`` (:func:`load_base`) and ``--text_base`` (:func:`load_text_base`)."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from torch import nn

from vlkit.encoders.bases import ClipBase, Preprocess, clip_base, named_resize
from vlkit.encoders.context import set_context_length
from vlkit.encoders.hub import hub_access, offline_text_cfg, quiet
from vlkit.encoders.load_contrastive import FORM as HF_FORM
from vlkit.encoders.load_contrastive import SCHEME as HF
from vlkit.encoders.load_contrastive import load_contrastive
from vlkit.encoders.load_text import load_text_base
from vlkit.encoders.pair import FORM as PAIR_FORM
from vlkit.encoders.pair import is_pair, load_pair
from vlkit.encoders.stored_layers import store_towers
from vlkit.encoders.stored_weights import named_format
from vlkit.encoders.tokenizer import ClipTokenizer, has_tokenizer
from vlkit.encoders.weights import BAD_FILE, first_line, fit_weights, read_weights
from vlkit.errors import UserError, some

__all__ = ["load_base", "load_text_base"]

logger = logging.getLogger(__name__)

EMBEDDED = "tiny"
FORMS = (
    "tiny, ARCH (random weights), ARCH:TAG, ARCH:FILE, hf-hub:ORG/NAME, local-dir:FOLDER, "
    f"{HF_FORM}, photos, or a pair of encoders: {PAIR_FORM}"
)
# Padding ids of tokenizers whose text towers do not store them (the towers attend to padding).
PAD_IDS = {"timm/ViT-B-16-SigLIP": 1, "timm/ViT-B-16-SigLIP-i18n-256": 1}


def load_base(
    name: str,
    tokenizer: str | Path | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
) -> ClipBase:
    """Load a contrastive base by name.

    Args:
        name: ``tiny``, ``ARCH`` (random weights from a fixed seed), ``ARCH:TAG``, ``ARCH:FILE`` (a file for
            :func:`vlkit.encoders.weights.read_weights`), ``hf-hub:ORG/NAME`` or ``local-dir:FOLDER``;
            ``hf:NAME_OR_FOLDER`` of transformers (:func:`vlkit.encoders.load_contrastive.load_contrastive`);
            ``photos`` or another pair of encoders (:func:`vlkit.encoders.pair.load_pair`).
        tokenizer: folder with the files of a transformers tokenizer, for architectures that do not use CLIP's own;
            default: the folder of FILE if it has them, otherwise the hub.
        image_size: side of the (square) images in pixels, if it differs from the base's own; open_clip then resizes
            the position embeddings. The vision tower's identity records it (``image_size``).
        context_length: tokens per text, if not the base's own (:func:`vlkit.encoders.context.set_context_length`). The
            text tower's identity records it.

    ``NAME@bf16``, ``NAME@int8`` and ``NAME@nf4`` store the frozen weights in fewer bytes
    (:mod:`vlkit.encoders.stored_weights`). ``NAME@squash`` shows the base whole images, each side scaled by itself,
    ``NAME@longest`` pads them, ``NAME@shortest`` cuts out their centre, which is what most bases do by themselves;
    a format comes last (``NAME@squash@int8``).

    Raises:
        UserError: unknown name, weights that are missing or do not fit, a tower that cannot be staged or resized.
    """
    sized, number_format = named_format(name)
    bare, resize_mode = named_resize(sized)
    base = _load_sized(bare, tokenizer, image_size)
    base.name = name
    if resize_mode is not None:
        base.preprocess = replace(base.preprocess, resize_mode=resize_mode)
    if context_length is not None:
        set_context_length(base, context_length)
    store_towers({"image": base.image, "text": base.text}, base.identity, number_format)
    return base


def _load_sized(name: str, tokenizer: str | Path | None, image_size: int | None) -> ClipBase:
    if image_size is None:
        return _load(name, tokenizer, None)
    if image_size < 1:
        raise UserError(f"image size {image_size}: give the side of the images in pixels")
    try:
        base = _load(name, tokenizer, image_size)
    except (UserError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"base {name!r} at {image_size} pixels: {first_line(error)}") from error
    base.identity["image"]["image_size"] = image_size
    return base


def _load(name: str, tokenizer: str | Path | None, image_size: int | None) -> ClipBase:
    if name == EMBEDDED:
        from vlkit.encoders.tiny import load_tiny_clip

        return load_tiny_clip(image_size)
    if is_pair(name):
        return load_pair(name, tokenizer, image_size)
    if name.startswith(HF):
        return load_contrastive(name, tokenizer, image_size)
    scheme, _, rest = name.partition(":")
    if scheme in ("hf-hub", "local-dir"):
        return _load_published(name, scheme, rest, tokenizer, image_size)
    arch, weights = scheme.replace("/", "-"), rest
    if arch not in open_clip.list_models():
        raise UserError(f"base {name!r}: open_clip has no architecture {arch!r}{_close_to(arch)}; a base is {FORMS}")
    if not {"vision_cfg", "text_cfg"} <= _config(arch).keys():
        raise UserError(f"base {name!r}: {arch} is not a model of images and texts; a base is {FORMS}")
    if not weights:
        logger.warning("base %s: RANDOM WEIGHTS, not pre-trained; for real use give %s:TAG or %s:FILE", *[arch] * 3)
        model, weights = build_random(arch, image_size), "random"
    elif weights in open_clip.list_pretrained_tags_by_model(arch):
        model = _build_with_tag(arch, weights, image_size)
    elif Path(weights).is_file():
        model = _build_with_file(arch, Path(weights), image_size)
        if tokenizer is None and has_tokenizer(Path(weights).parent):
            tokenizer = Path(weights).parent
    else:
        tags = some(open_clip.list_pretrained_tags_by_model(arch), 12) or "none"
        raise UserError(f"base {name!r}: {weights!r} is neither a file nor a tag of {arch} (tags: {tags})")
    text_cfg = _config(arch)["text_cfg"]
    return clip_base(
        model,
        name,
        ClipTokenizer(arch, text_cfg, tokenizer),
        Preprocess.from_dict(cast(Any, model.visual).preprocess_cfg),
        {"library": "open_clip", "name": arch, "weights": weights},
        PAD_IDS.get(text_cfg.get("hf_tokenizer_name", "")),
    )


def _config(arch: str) -> dict[str, Any]:
    return cast(dict[str, Any], open_clip.get_model_config(arch))  # None for unknown names alone


def _close_to(arch: str) -> str:
    lower = {known.lower(): known for known in open_clip.list_models()}
    close = difflib.get_close_matches(arch.lower(), lower, n=3, cutoff=0.5)
    return f"; close: {', '.join(lower[match] for match in close)}" if close else ""


def _build_with_file(arch: str, path: Path, image_size: int | None) -> nn.Module:
    """Build an architecture with the weights of a file, and with QuickGELU if the file says so."""
    weights = read_weights(path, arch)
    quick_gelu = weights.quick_gelu and not _config(arch).get("quick_gelu", False)
    if quick_gelu:
        logger.info("base %s:%s: using QuickGELU, because these weights were trained with it", arch, path)
    elif not weights.quick_gelu and f"{arch}-quickgelu" in open_clip.list_models():
        logger.warning(
            "base %s:%s: the file does not say which activation its weights were trained with; using GELU. "
            "For OpenAI's weights, and models fine-tuned from them, give %s-quickgelu:%s",
            *(arch, path, arch, path),
        )
    model = build_random(arch, image_size, {"quick_gelu": True} if quick_gelu else {})
    fit_weights(model, arch, path, weights)
    return model


def build_random(arch: str, image_size: int | None = None, options: dict[str, Any] | None = None) -> nn.Module:
    """Build an architecture of open_clip with random weights from a fixed seed, without access to the hub."""
    config = _config(arch)
    with offline_text_cfg(config["text_cfg"]) as text_cfg, quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.create_model(
            arch,
            pretrained_text=False,
            text_cfg=text_cfg,
            force_preprocess_cfg=_usual_preprocess(arch),
            force_image_size=image_size,
            **(options or {}),
        )


def _usual_preprocess(arch: str) -> dict[str, Any]:
    """Preprocessing values that all published weights of an architecture share; a bare state dict has none."""
    configs = [open_clip.get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)]
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {
        key: configs[0][key]
        for key in keys
        if configs and all(key in config and config[key] == configs[0].get(key) for config in configs)
    }


def _build_with_tag(arch: str, tag: str, image_size: int | None = None) -> nn.Module:
    """Build an architecture with published weights, from the cache or the hub."""
    config = _config(arch)
    # The tag knows the activation of its weights; the plain architecture says GELU even if they need QuickGELU.
    quick_gelu = bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False))
    if quick_gelu != config.get("quick_gelu", False):
        logger.info(
            "base %s:%s: using %s, because these weights were trained with it",
            *(arch, tag, "QuickGELU" if quick_gelu else "GELU"),
        )
    try:
        with offline_text_cfg(config["text_cfg"]) as text_cfg, hub_access():
            return open_clip.create_model(
                arch, pretrained=tag, text_cfg=text_cfg, quick_gelu=quick_gelu, force_image_size=image_size
            )
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"base {arch}:{tag}: weights could not be fetched or read ({first_line(error)}); "
            f"without network access give a file: {arch}:FILE"
        ) from error


def _load_published(
    name: str, scheme: str, place: str, tokenizer: str | Path | None, image_size: int | None
) -> ClipBase:
    """Load a model with its own ``open_clip_config.json``, from the hub or a local folder."""
    try:
        overrides = contextlib.nullcontext(None)
        if scheme == "local-dir":
            config = json.loads((Path(place) / "open_clip_config.json").read_text(encoding="utf-8"))
            overrides = offline_text_cfg(config["model_cfg"]["text_cfg"])
        with overrides as text_cfg, hub_access() if scheme == "hf-hub" else quiet():
            options: dict[str, Any] = {"force_image_size": image_size} | (
                {} if text_cfg is None else {"text_cfg": text_cfg}
            )
            model = open_clip.create_model(name, require_pretrained=True, pretrained_text=False, **options)
    except BAD_FILE as error:
        raise UserError(
            f"base {name!r}: cannot be loaded ({first_line(error)}); "
            "it needs open_clip_config.json and weights that fit it, as open_clip publishes them"
        ) from error
    preprocess = Preprocess.from_dict(cast(Any, model.visual).preprocess_cfg)
    identity = {"library": "open_clip", "name": name, "weights": place}
    return clip_base(model, name, ClipTokenizer(name, {}, tokenizer), preprocess, identity)
