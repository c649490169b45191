"""Read weight files in several formats into a state dict that fits an open_clip architecture."""

from __future__ import annotations

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from open_clip.convert import convert_state_dict, load_big_vision_weights
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlkit.encoders.hub import quiet
from vlkit.encoders.torchscript import is_torchscript, read_torchscript
from vlkit.errors import UserError, some

BIG_VISION = (".npz", ".npy")
# Keys of training checkpoints that hold the weights, and prefixes that wrappers add to every name.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.")
# OpenAI's own models store their sizes as tensors; all of them use QuickGELU.
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
# Errors that reading or converting an unsuitable file can raise.
BAD_FILE = (
    *(OSError, EOFError, pickle.UnpicklingError, SafetensorError, RuntimeError, zipfile.BadZipFile, RecursionError),
    *(AssertionError, AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError, OverflowError),
)


@dataclass(frozen=True)
class Weights:
    """The contents of a weight file.

    Attributes:
        state: name -> tensor, without prefixes of wrappers; empty for big_vision's files.
        quick_gelu: the file says that its weights need QuickGELU; False = unknown.
    """

    state: dict[str, Tensor]
    quick_gelu: bool = False


def read_weights(path: Path, arch: str) -> Weights:
    """Read a weight file without executing anything in it.

    Args:
        path: a state dict (.safetensors, or .pt, .pth, .bin with only tensors), bare or inside a training checkpoint
            (``state_dict``, ``model_state_dict``, ``model``, ``module``), a TorchScript archive, or big_vision's .npz.
        arch: the architecture of the weights, for messages.

    Raises:
        UserError: the file cannot be read, or holds more than tensors.
    """
    if path.suffix in BIG_VISION:
        return Weights({})
    try:
        if path.suffix == ".safetensors":
            return _weights(load_file(path))
        if is_torchscript(path):
            return _weights(*read_torchscript(path))
        # Memory-mapped: the weights are only inspected, or copied into a model.
        return _weights(torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path)))
    except BAD_FILE as error:
        raise _unreadable(path, arch, error) from error


def _weights(found: Any, quick_gelu: bool = False) -> Weights:
    while isinstance(found, dict):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"it holds a {type(found).__name__}, not a state dict")
    state = dict(found)
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    sizes = [state.pop(key, None) for key in OPENAI_SIZES]
    return Weights(state, quick_gelu or any(size is not None for size in sizes))


def fit_weights(model: nn.Module, arch: str, path: Path, weights: Weights) -> None:
    """Load ``weights`` into open_clip's ``model``; every name and shape must fit, position embeddings are resized.

    Raises:
        UserError: the weights are of another architecture; the message lists the differences.
    """
    try:
        with quiet():
            if path.suffix in BIG_VISION:
                load_big_vision_weights(cast(Any, model), str(path))
                return
            state = _converted(model, dict(weights.state))
    except BAD_FILE as error:
        raise _unreadable(path, arch, error) from error
    load_checked(model, arch, path, state)


def load_checked(model: nn.Module, arch: str, path: Path, state: dict[str, Tensor]) -> None:
    """Load a state dict into a model; every name and shape must fit.

    Raises:
        UserError: the weights are of another architecture; the message lists the differences.
    """
    try:
        result = model.load_state_dict(state, strict=False)
    except BAD_FILE as error:
        shapes = re.findall(r"size mismatch for (\S+): .*?(\[[^]]*\]).*?(\[[^]]*\])", str(error))
        if not shapes:
            raise _unreadable(path, arch, error) from error
        wrong = some([f"{key} is {got}, expected {expected}" for key, got, expected in shapes], 3)
        raise UserError(f"{path}: not weights of {arch}: {wrong}; give the file of this architecture") from None
    # A traced model also saves its masks.
    computed = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    missing, unexpected = result.missing_keys, [key for key in result.unexpected_keys if key not in computed]
    if missing or unexpected:
        parts = [f"{what} {some(keys, 3)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise UserError(f"{path}: not weights of {arch}: {'; '.join(parts)}; give the file of this architecture")


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict in a format of open_clip, OpenAI or MobileCLIP to that of open_clip's model."""
    state = convert_state_dict(cast(Any, model), state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a scalar, or a vector with one value
        own = getattr(model, name)
        if name in state and own is not None:
            state[name] = state[name].reshape(own.shape)
    if "logit_bias" not in state and model.logit_bias is not None:
        state["logit_bias"] = torch.zeros_like(cast(Tensor, model.logit_bias))
    for name in [key for key in state if key.endswith("embeddings.position_ids")]:
        if name not in model.state_dict():  # transformers counts positions itself since 4.31
            del state[name]
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    return state


def _unreadable(path: Path, arch: str, error: BaseException) -> UserError:
    return UserError(
        f"{path}: cannot be read as a state dict of {arch} ({first_line(error)}); "
        "give a .safetensors file, or a .pt, .pth or .bin file that holds only tensors"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error, cut to 200 characters."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other objects than tensors, and only tensors are unpickled"
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:200]
