"""Files of a pre-training run: the weights to ship, and the resume state."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlkit.errors import UserError
from vlkit.files import whole_file


def save_weights(folder: Path, model: nn.Module) -> None:
    """``model.safetensors`` in half precision, written whole."""
    half = {name: tensor.half().contiguous() for name, tensor in unique_state(model).items()}
    with whole_file(folder / "model.safetensors") as path:
        save_file(half, path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Load what :func:`save_weights` wrote.

    Raises:
        UserError: there is no such file, or it holds the weights of another model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--start {path}: no weights ({error}); give model.safetensors of a run") from None
    expected = {name: tensor.shape for name, tensor in unique_state(model).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise UserError(
            f"--start {path}: holds the weights of another model; give those of a run with the same --model"
        )
    model.load_state_dict(tensors, strict=False)


def save_resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, str]) -> None:
    """``resume.safetensors``: weights and moments, with ``facts`` (``settings`` among them), written whole."""
    state = {f"model.{name}": tensor.contiguous() for name, tensor in unique_state(model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    with whole_file(folder / "resume.safetensors") as path:
        save_file(state, path, metadata=facts)


def load_resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: str
) -> dict[str, str] | None:
    """Load the state written by :func:`save_resume` and return its facts; None if there is none.

    Raises:
        UserError: the run was started with other settings.
    """
    path = folder / "resume.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        if facts["settings"] != settings:
            raise UserError(f"{path}: written with other settings ({facts['settings']}); give another --output")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    model.load_state_dict(weights, strict=False)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return facts


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without duplicate names of shared tensors (T5 ties its embeddings)."""
    seen: dict[int, str] = {}
    return {n: t for n, t in model.state_dict().items() if seen.setdefault(t.data_ptr(), n) == n}
