"""Files of weights: whatever they are wrapped in -> a state dict that fits an open_clip architecture."""

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
# Where training scripts put the weights in what they save, and what wrappers put before every name.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
PREFIXES = ("module.", "_orig_mod.", "model.")
# OpenAI's own models carry their sizes as tensors; all of them compute QuickGELU.
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
# What reading or converting a file that holds something else can raise.
BAD_FILE = (
    *(OSError, EOFError, pickle.UnpicklingError, SafetensorError, RuntimeError, zipfile.BadZipFile, RecursionError),
    *(AssertionError, AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError, OverflowError),
)


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        state: name -> tensor, without the names that wrappers put in front; empty for big_vision's files.
        quick_gelu: the file says that these weights compute QuickGELU; False = it does not say.
    """

    state: dict[str, Tensor]
    quick_gelu: bool = False


def read_weights(path: Path, arch: str) -> Weights:
    """Read a file of weights; nothing in it is executed.

    Args:
        path: a state dict (.safetensors, or .pt, .pth, .bin of tensors alone), bare or inside a training checkpoint
            (``state_dict``, ``model_state_dict``, ``model``, ``module``), a TorchScript archive, or big_vision's .npz.
        arch: the architecture it is meant for, for messages.

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
        # Mapped, not read: the weights are copied into a model, or only looked at.
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
        raise ValueError(f"it holds a {type(found).__name__}, no state dict")
    state = dict(found)
    while prefix := next((p for p in PREFIXES if state and all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    sizes = [state.pop(key, None) for key in OPENAI_SIZES]
    return Weights(state, quick_gelu or any(size is not None for size in sizes))


def fit_weights(model: nn.Module, arch: str, path: Path, weights: Weights) -> None:
    """Put ``weights`` into open_clip's ``model``; every name and shape must fit, position embeddings are resized.

    Raises:
        UserError: they are weights of something else; the message says in what they differ.
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
        UserError: they are weights of something else; the message says in what they differ.
    """
    try:
        result = model.load_state_dict(state, strict=False)
    except BAD_FILE as error:
        shapes = re.findall(r"size mismatch for (\S+): .*?(\[[^]]*\]).*?(\[[^]]*\])", str(error))
        if not shapes:
            raise _unreadable(path, arch, error) from error
        wrong = some([f"{key} is {got}, expected {expected}" for key, got, expected in shapes], 3)
        raise UserError(f"{path}: not weights of {arch}: {wrong}; give the file of this architecture") from None
    # A traced model saves its masks, too.
    computed = {name for name, _ in model.named_buffers()} - set(model.state_dict())
    missing, unexpected = result.missing_keys, [key for key in result.unexpected_keys if key not in computed]
    if missing or unexpected:
        parts = [f"{what} {some(keys, 3)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise UserError(f"{path}: not weights of {arch}: {'; '.join(parts)}; give the file of this architecture")


def _converted(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as open_clip's model has them, whatever format of open_clip, OpenAI or MobileCLIP they come in."""
    state = convert_state_dict(cast(Any, model), state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector with one number
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
        "give a .safetensors file, or a .pt, .pth or .bin file that holds nothing but tensors"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error in at most 200 characters."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, and nothing else is unpickled"
    text = str(error).strip() or type(error).__name__
    return " ".join(text.splitlines()[0].split())[:200]
