"""Load CLIP and SigLIP in the format of transformers: ``--base hf:NAME_OR_FOLDER``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vlkit.encoders import naflex
from vlkit.encoders.bases import ClipBase, Preprocess, fingerprint
from vlkit.encoders.contrastive_families import CLIP, CONTRASTIVE, SIGLIP, Contrastive, contrastive_of_kind
from vlkit.encoders.hub import hub_access, quiet
from vlkit.encoders.shapes_only import shapes_only
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.tokenizer import HfTokenizer, has_tokenizer
from vlkit.encoders.towers.hf_contrastive import HfClipText, HfClipVision, SiglipText, SiglipVision
from vlkit.encoders.towers.text import TextEncoder
from vlkit.encoders.weights import first_line
from vlkit.errors import UserError, some

SCHEME = "hf:"
FORM = "hf:NAME_OR_FOLDER (CLIP or SigLIP as transformers saves it)"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# PIL's numbers of resampling filters.
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def load_contrastive(name: str, tokenizer: str | Path | None = None, image_size: int | None = None) -> ClipBase:
    """Load a contrastive model of transformers.

    Args:
        name: ``hf:`` and a name on the hub, or a folder that holds what ``save_pretrained`` of the model and of its
            processor write.
        tokenizer: folder with the files of the tokenizer, if they are not in the model's folder.
        image_size: side of the images in pixels, if not the model's own; the position embeddings are resized.

    A SigLIP 2 for images of any shape (NaFlex) reads square images, see :mod:`vlkit.encoders.naflex`.

    Raises:
        UserError: files are missing or unreadable, or the model is of another family.
    """
    place = name.removeprefix(SCHEME)
    folder = Path(place)
    if folder.is_dir():
        _check_files(name, folder, tokenizer is None)
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    try:
        with quiet() if folder.is_dir() else hub_access():
            config = AutoConfig.from_pretrained(place)
            family = _family(name, config)
            model = _model(name, config, place)
            words = AutoTokenizer.from_pretrained(str(tokenizer or place))
            processor = AutoImageProcessor.from_pretrained(place)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"base {name!r}: cannot be loaded ({first_line(error)}); give the name of a CLIP or SigLIP model on the "
            "hub, or a folder that save_pretrained of the model and of its processor wrote"
        ) from error
    any_shape = config.model_type == naflex.KIND
    if any_shape:
        model = naflex.square_siglip(model, image_size)
    own = model.config.vision_config.image_size
    squares = {"size": {"height": own, "width": own}} if any_shape else {}
    preprocess = _preprocess(name, {**processor.to_dict(), **squares})
    side = image_size or own
    if image_size is not None and not any_shape:
        _resize_images(model.vision_model, image_size)
    elif preprocess.size != (side, side):
        raise UserError(
            f"base {name!r}: its processor makes images of {preprocess.size[0]} x {preprocess.size[1]} pixels and its "
            f"vision tower reads {side} x {side}; save the processor of this model to the folder"
        )
    preprocess = Preprocess.from_dict({**preprocess.to_dict(), "size": side})
    return _base(name, family, model.eval(), _tokenizer(name, model, words), preprocess, words.pad_token_id)


def library_model(name: str) -> Any:
    """transformers' ``CLIPModel`` or ``SiglipModel`` of a base for :func:`load_contrastive`; float32, in eval mode."""
    from transformers import AutoConfig

    place = name.removeprefix(SCHEME)
    with quiet() if Path(place).is_dir() else hub_access():
        config = AutoConfig.from_pretrained(place)
        model = _model(name, config, place)
    return (naflex.square_siglip(model) if config.model_type == naflex.KIND else model).eval()


def stage_pair(family: Contrastive, model: Any, pad_id: int) -> tuple[StagedEncoder, TextEncoder]:
    """The towers of a library's model, which share its weights.

    Args:
        family: the model's family.
        model: ``CLIPModel`` or ``SiglipModel``.
        pad_id: padding id of the tokenizer.
    """
    if family is CLIP:
        return HfClipVision(_vision_half(model)), HfClipText(_text_half(model))
    return SiglipVision(model.vision_model), SiglipText(model.text_model, pad_id)


def _check_files(name: str, folder: Path, with_tokenizer: bool) -> None:
    """Raise :class:`UserError` with every file that a local folder lacks."""

    def has(names: tuple[str, ...]) -> bool:
        return any((folder / file).is_file() for file in names)

    missing = [] if has(("config.json",)) else ["config.json"]
    missing += [] if has(WEIGHTS) else [WEIGHTS[0]]
    missing += [] if has(PROCESSORS) else [PROCESSORS[0]]
    missing += [] if has_tokenizer(folder) or not with_tokenizer else ["tokenizer files"]
    if missing:
        other = f"; for the format of open_clip give local-dir:{folder}" if has(("open_clip_config.json",)) else ""
        raise UserError(
            f"base {name!r}: the folder lacks {some(missing)}; save the model and its processor to it "
            f"(save_pretrained of both){other}"
        )


def _family(name: str, config: Any) -> Contrastive:
    family = SIGLIP if config.model_type == naflex.KIND else contrastive_of_kind(config.model_type)
    if family is None:
        kinds = ", ".join(known.kind for known in CONTRASTIVE)
        raise UserError(
            f"base {name!r}: model_type {config.model_type!r} is none of {kinds}; a text encoder needs an image "
            f"encoder beside it: timm:NAME+{name}"
        )
    return family


def _model(name: str, config: Any, place: str) -> Any:
    import transformers

    own = naflex.MODEL if config.model_type == naflex.KIND else _family(name, config).model
    kind = cast(Any, getattr(transformers, own))
    # Without dtype the file's own would be used, and every base of vlkit starts in float32.
    model, info = kind.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(f"base {name!r}: its weights lack {some(sorted(info['missing_keys']), 3)}; give all of them")
    if getattr(model.vision_model, "use_head", True) is False:
        raise UserError(f"base {name!r}: vision_use_head is false, so it has no pooled embedding; give a whole model")
    return model


def _tokenizer(name: str, model: Any, words: Any) -> HfTokenizer:
    if words.pad_token_id is None:
        raise UserError(f"base {name!r}: its tokenizer has no padding token; set pad_token and save it again")
    return HfTokenizer(words, model.config.text_config.max_position_embeddings)


def _preprocess(name: str, values: dict[str, Any]) -> Preprocess:
    """Preprocessing of an image processor's configuration.

    A processor may scale the short side to more than it then crops (256 to 224, say). Here the side is scaled to the
    crop, so that the borders of an image are not lost.
    """
    interpolation = INTERPOLATIONS.get(int(values.get("resample") or 0))
    size = values.get("size") or {}
    crops = bool(values.get("do_center_crop")) and "shortest_edge" in size
    kept = values.get("crop_size") if crops else size
    if interpolation is None or not values.get("do_resize") or not kept or not {"height", "width"} <= set(kept):
        raise UserError(
            f"base {name!r}: its image processor resizes in a way that vlkit does not know (resample "
            f"{values.get('resample')}, size {size}); known: bicubic or bilinear, to height and width, or to the "
            "shortest_edge with do_center_crop"
        )
    normalizes = bool(values.get("do_normalize"))
    return Preprocess.from_dict(
        {
            "size": (kept["height"], kept["width"]),
            "mean": values["image_mean"] if normalizes else (0.0,) * 3,
            "std": values["image_std"] if normalizes else (1.0,) * 3,
            "interpolation": interpolation,
            "resize_mode": "shortest" if crops else "squash",
        }
    )


def _resize_images(tower: Any, side: int) -> None:
    """Resize the position embeddings of a vision tower to images of ``side`` pixels, as the library interpolates them.

    Raises:
        ValueError: ``side`` is not a multiple of the patch size.
    """
    parts, patch = tower.embeddings, tower.config.patch_size
    if side % patch:
        raise ValueError(f"the side must be a multiple of {patch}, the side of a patch")
    cells = (side // patch) ** 2
    classes = parts.num_positions - parts.num_patches
    with torch.no_grad():
        positions = parts.interpolate_pos_encoding(torch.empty(1, classes + cells, parts.embed_dim), side, side)[0]
    parts.position_embedding = nn.Embedding.from_pretrained(positions.clone(), freeze=False)
    parts.position_ids = torch.arange(classes + cells).expand(1, -1)
    parts.num_patches, parts.num_positions, parts.image_size = cells, classes + cells, side
    tower.config.image_size = side


def _base(
    name: str,
    family: Contrastive,
    model: Any,
    tokenize: Callable[[list[str]], Tensor],
    preprocess: Preprocess,
    pad_id: int,
) -> ClipBase:
    image, text = stage_pair(family, model, pad_id)
    bias = getattr(model, "logit_bias", None)
    identity = {"library": "transformers", "name": name, "weights": name.removeprefix(SCHEME)}
    return ClipBase(
        name=name,
        image=image,
        text=text,
        preprocess=preprocess,
        tokenize=tokenize,
        logit_scale=float(model.logit_scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()),
        identity={
            "image": {**identity, "fingerprint": fingerprint(image.model)},
            "text": {**identity, "fingerprint": fingerprint(text.model)},
        },
    )


def _vision_half(model: Any) -> nn.Module:
    """The vision half of a ``CLIPModel`` as transformers' own class, which shares its weights."""
    from transformers import CLIPVisionModelWithProjection

    with shapes_only():
        half = CLIPVisionModelWithProjection(model.config.vision_config)
    half.vision_model, half.visual_projection = model.vision_model, model.visual_projection
    return half.eval()


def _text_half(model: Any) -> nn.Module:
    """The text half of a ``CLIPModel`` as transformers' own class, which shares its weights."""
    from transformers import CLIPTextModelWithProjection

    with shapes_only():
        half = CLIPTextModelWithProjection(model.config.text_config)
    half.text_model, half.text_projection = model.text_model, model.text_projection
    return half.eval()
