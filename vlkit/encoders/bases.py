"""A loaded base: its staged towers, preprocessing, tokenizer and identity."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from vlkit.encoders.stage import stage_hf, stage_t5_decoder, stage_text, stage_vision
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.tokenizer import readable
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.encoders.towers.text import TextEncoder

# Values sampled per tensor for a fingerprint.
SAMPLES = 64
# Default width of the joint space of a pair.
JOINT_DIM = 512


ResizeMode = Literal["shortest", "longest", "squash"]
"""How an image gets the shape of the input, in open_clip's words: its centre is cut out, it is padded, or each side is
scaled by itself."""


def named_resize(name: str) -> tuple[str, ResizeMode | None]:
    """``NAME@squash`` -> ``NAME``, ``squash``; a name without it keeps the resizing of its base (None)."""
    bare, _, last = name.rpartition("@")
    return (bare, cast(ResizeMode, last)) if bare and last in get_args(ResizeMode) else (name, None)


@dataclass(frozen=True)
class Preprocess:
    """Image preprocessing of a base; plain values, ready for JSON (:meth:`to_dict`).

    Attributes:
        size: (height, width) in pixels.
        mean: per channel, of values in 0..1.
        std: per channel, of values in 0..1.
        interpolation: ``bicubic`` or ``bilinear``.
        resize_mode: ``shortest`` (then centre crop), ``longest`` (then padding) or ``squash``.
        fill_color: padding value, 0..255.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @property
    def draft_side(self) -> int:
        """Pixels that both sides of a JPEG keep where it is decoded at a part of its size: twice the input, so that
        resizing still averages (``min_side`` of :func:`vlkit.data.images.open_image`)."""
        return 2 * max(self.size)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Inverse of :meth:`to_dict`; also accepts open_clip's configuration, whose size may be one number."""
        known = {key: values[key] for key in cls.__dataclass_fields__ if key in values}
        size = known["size"]
        known["size"] = (size, size) if isinstance(size, int) else tuple(size)
        return cls(**{**known, "mean": tuple(known["mean"]), "std": tuple(known["std"])})


@dataclass
class ClipBase:
    """A contrastive base: two staged towers with one joint space.

    Attributes:
        name: the user's value of ``--base``.
        image: tower for images [B, 3, H, W] float, prepared according to ``preprocess``.
        text: tower for ids [B, L] int64 from ``tokenize``.
        preprocess: image preprocessing.
        tokenize: list of texts -> ids [B, context length] int64.
        logit_scale: log of the factor on cosine similarities.
        logit_bias: bias on the scaled similarities, for bases trained with a sigmoid loss; otherwise None.
        identity: per tower (``image``, ``text``): ``library``, ``name``, ``weights``, ``fingerprint``.
        joint_dim: None for towers that were trained together and share a space. For a pair of unimodal encoders, the
            default width of the joint space that its heads learn.
    """

    name: str
    image: StagedEncoder
    text: TextEncoder
    preprocess: Preprocess
    tokenize: Callable[[list[str]], Tensor]
    logit_scale: float
    logit_bias: float | None
    identity: dict[str, dict[str, Any]]
    joint_dim: int | None = None


@dataclass
class TextBase:
    """A text base: a staged encoder and, for T5, a staged decoder.

    Attributes:
        name: the user's value of ``--text_base``.
        encoder: tower for ids [B, L] int64.
        decoder: T5's decoder, or None.
        tokenizer: the transformers tokenizer.
        start_id: start token id of the decoder, or None.
        identity: per tower (``encoder`` and ``decoder`` if any): ``library``, ``name``, ``weights``, ``fingerprint``.
    """

    name: str
    encoder: TextEncoder
    decoder: T5Decoder | None
    tokenizer: Any
    start_id: int | None
    identity: dict[str, dict[str, Any]]

    def tokenize(self, texts: list[str], max_length: int | None = None) -> Tensor:
        """Texts -> ids [B, L] int64, padded to the longest text; truncated to ``max_length`` tokens."""
        batch = self.tokenizer(
            readable(texts), padding=True, truncation=max_length is not None, max_length=max_length, return_tensors="pt"
        )
        return batch["input_ids"]

    def lengths(self, texts: list[str]) -> list[int]:
        """Number of tokens of each untruncated text, including the end token."""
        return [len(row) for row in self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]


def clip_base(
    model: nn.Module,
    name: str,
    tokenize: Callable[[list[str]], Tensor],
    preprocess: Preprocess,
    identity: dict[str, str],
    pad_id: int | None = None,
) -> ClipBase:
    """Stage both towers of an open_clip model. The model itself is not kept.

    Args:
        model: ``CLIP``, ``CustomTextCLIP`` or ``CoCa``.
        name: the name that the user gave.
        tokenize: texts -> ids.
        preprocess: image preprocessing.
        identity: ``library``, ``name`` and ``weights`` of the base; this function adds the fingerprints.
        pad_id: padding id of the tokenizer, if the text tower does not know it.

    Raises:
        UserError: a tower cannot be staged.
    """
    image, text = stage_vision(model.eval()), stage_text(model, pad_id)
    scale, bias = cast(Tensor, model.logit_scale), cast("Tensor | None", model.logit_bias)
    return ClipBase(
        name=name,
        image=image,
        text=text,
        preprocess=preprocess,
        tokenize=tokenize,
        logit_scale=float(scale.detach()),
        logit_bias=None if bias is None else float(bias.detach()),
        identity={
            "image": {**identity, "fingerprint": fingerprint(image.model)},
            "text": {**identity, "fingerprint": fingerprint(text.model)},
        },
    )


def pair_base(
    name: str,
    image: StagedEncoder,
    text: TextEncoder,
    tokenize: Callable[[list[str]], Tensor],
    preprocess: Preprocess,
    image_identity: dict[str, str],
    text_identity: dict[str, str],
) -> ClipBase:
    """Combine two encoders that were not trained together into one base.

    Args:
        name: the name that the user gave.
        image, text: the towers.
        tokenize: texts -> ids.
        preprocess: image preprocessing.
        image_identity, text_identity: ``library``, ``name`` and ``weights``; this function adds the fingerprints.
    """
    image.eval()
    text.eval()
    return ClipBase(
        name=name,
        image=image,
        text=text,
        preprocess=preprocess,
        tokenize=tokenize,
        logit_scale=math.log(1 / 0.07),  # CLIP's initial value
        logit_bias=None,
        identity={
            "image": {**image_identity, "fingerprint": fingerprint(image.model)},
            "text": {**text_identity, "fingerprint": fingerprint(text.model)},
        },
        joint_dim=JOINT_DIM,
    )


def text_base(model: nn.Module, name: str, tokenizer: Any, identity: dict[str, str]) -> TextBase:
    """Stage a transformers encoder, and the decoder of a T5 that has one.

    Args:
        model: the model.
        name: the name that the user gave.
        tokenizer: its transformers tokenizer.
        identity: ``library``, ``name`` and ``weights``; this function adds the fingerprints.

    Raises:
        UserError: the model cannot be staged.
    """
    encoder = stage_hf(model.eval())
    decoder = stage_t5_decoder(model) if hasattr(model, "lm_head") else None
    towers: dict[str, StagedEncoder] = {"encoder": encoder}
    if decoder:
        towers["decoder"] = decoder
    return TextBase(
        name=name,
        encoder=encoder,
        decoder=decoder,
        tokenizer=tokenizer,
        start_id=cast(Any, model.config).decoder_start_token_id if decoder else None,
        identity={key: {**identity, "fingerprint": fingerprint(tower.model)} for key, tower in towers.items()},
    )


def fingerprint(module: nn.Module) -> str:
    """Short hash of the weights: name, shape and up to 64 evenly spaced values of every saved tensor.

    The same weights give the same hash in every process and on every device. Compute it right after loading, because a
    cast to another precision changes values. Takes milliseconds even for towers of several gigabytes.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            flat = tensor.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // SAMPLES)][: SAMPLES + 1]
            digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:32]
