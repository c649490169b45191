"""Files with trained weights: the resume state of a run, and the adapter folder that users share. No pickle.

A resume state is one safetensors file. It is replaced by a rename, so a complete one always exists. An adapter folder
holds ``vlkit_adapter.json`` and ``vlkit_adapter.safetensors`` with only what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialize
from safetensors.torch import load_file, save_file
from safetensors.torch import save as serialize
from torch import Tensor, nn

from vlkit.adapters.adapter_files import ADAPTER_FORMAT, ADAPTER_VERSION, CONFIG_FILE, MODEL_FILE, AdapterFiles
from vlkit.adapters.base import trained_state
from vlkit.adapters.mix import Trained, mixed
from vlkit.engine.foreign import config_problem
from vlkit.engine.state import RunState
from vlkit.errors import UserError, some
from vlkit.files import read_json, whole_file, write_json

STATE_FILE = "state.safetensors"


# --- resume state ----------------------------------------------------------------------------------------------------


@dataclass
class State:
    """Everything a run needs to continue as if it had never stopped.

    It holds no random state: order, augmentation and dropout are pure functions of the seed and ``step``
    (:mod:`vlkit.engine.loader`). It holds no learning rate either, which depends on ``step`` alone.

    Attributes:
        trained: the trained tensors after ``step`` (:func:`vlkit.adapters.base.trained_state`).
        best: those of the best evaluation so far; empty before the first one.
        optimizer: ``parameter name/state name`` -> the optimizer's tensor.
        progress: where the run stands.
        identity: JSON values that must not change when the run continues.
        loss_scaler: state of the float16 loss scaler; empty without one.
    """

    trained: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    progress: RunState = field(default_factory=RunState)
    identity: dict[str, Any] = field(default_factory=dict)
    loss_scaler: dict[str, Any] = field(default_factory=dict)


_GROUPS = ("trained", "best", "optimizer")


def save(folder: str | Path, state: State) -> None:
    """Write ``state`` into ``folder``; the previous one stays until the new one is complete and on disk."""
    _save_tensors(Path(folder) / STATE_FILE, *_packed(state))


def to_bytes(state: State) -> bytes:
    """The content of the file that :func:`save` writes. The tensors must be on the CPU."""
    tensors, metadata = _packed(state)
    return serialize({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, metadata)


def from_bytes(content: bytes) -> State:
    """The state whose :func:`to_bytes` is ``content``."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return _unpacked(metadata, deserialize(content))


def load(folder: str | Path) -> State | None:
    """Read the state in ``folder``; None if none was written yet. Tensors are on the CPU.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / STATE_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
            return _unpacked(file.metadata() or {}, tensors)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, AttributeError) as error:
        raise UserError(f"{path}: not a checkpoint of vlkit ({error}); start again with another --output") from None


def _packed(state: State) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    tensors = {f"{group}/{name}": t for group in _GROUPS for name, t in getattr(state, group).items()}
    values = {**asdict(state.progress), "identity": state.identity, "loss_scaler": state.loss_scaler}
    return tensors, {"values": json.dumps(values)}


def _unpacked(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> State:
    state, values = State(), json.loads(metadata["values"])
    state.identity, state.loss_scaler = values.pop("identity"), values.pop("loss_scaler")
    state.progress = RunState(**values)
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        getattr(state, group)[name] = tensor
    return state


def remove_leftovers(folder: str | Path) -> None:
    """Delete the incomplete file that a killed process left beside the checkpoint."""
    for part in Path(folder).glob(f".{STATE_FILE}.*.part"):
        part.unlink(missing_ok=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: ``{"gate/exp_avg": …}``; without learning rates and other options."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor | int | float)  # APOLLO's projections follow from its numbers
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Load the result of :func:`optimizer_tensors` into a new optimizer, bit for bit."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        state.setdefault(order.index(name), {})[part] = tensor
    # load_state_dict knows which entries live on the parameter's device and which stay on the CPU.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


# --- adapters --------------------------------------------------------------------------------------------------------


def save_adapter(folder: str | Path, model: nn.Module, config: Mapping[str, Any]) -> None:
    """Write the trained part of ``model``, and the config from which the rest is built.

    Args:
        folder: where ``vlkit_adapter.safetensors`` and ``vlkit_adapter.json`` go; the config is written last, so a
            folder that has one is complete.
        model: the trained model; a module wrapped by Fabric is unwrapped.
        config: JSON values: ``task``, ``base`` (per tower ``library``, ``name``, ``weights``, ``fingerprint``),
            ``adapters``, ``head``, ``preprocess``, ``metrics``. Format and version are added.
    """
    folder = Path(folder)
    _save_tensors(folder / MODEL_FILE, trained_state(unwrap(model)), {"format": "pt"})
    write_json(folder / CONFIG_FILE, {"format": ADAPTER_FORMAT, "format_version": ADAPTER_VERSION, **config})


def load_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an adapter folder: its config and its tensors (on the CPU).

    Raises:
        UserError: not an adapter folder, or written by a newer vlkit, or damaged.
    """
    folder, files = Path(folder), AdapterFiles.find(folder)
    if not files.config.exists():
        raise UserError(f"{folder}: no {CONFIG_FILE} there; give the folder of a finished run or a downloaded adapter")
    config = read_json(files.config)
    if not isinstance(config, dict) or config.get("format") != ADAPTER_FORMAT:
        raise UserError(f"{files.config}: field 'format' is not {ADAPTER_FORMAT!r}; not a vlkit adapter")
    version = config.get("format_version")
    if version not in range(1, ADAPTER_VERSION + 1) or isinstance(version, bool):
        fix = "install the vlkit that wrote it"
        raise UserError(f"{files.config}: format_version {version!r} is not 1 to {ADAPTER_VERSION}; {fix}")
    if "task" in config and config["task"] is None:
        raise UserError(f"{folder}: holds published blocks without a base; convert them again with --base")
    wrong = config_problem(config)
    if wrong:
        raise UserError(f"{files.config}: field {wrong!r} has no valid value; copy the adapter again")
    try:
        return config, load_file(files.tensors)
    except FileNotFoundError:
        raise UserError(f"{folder}: {files.tensors.name} is missing; copy both files of the adapter") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{files.tensors}: cannot be read ({error}); is the download complete?") from None


def check_base(
    config: Mapping[str, Any], actual: Mapping[str, Mapping[str, Any]], where: str | Path = "adapter"
) -> None:
    """Refuse a base other than the one the adapter was trained on.

    Args:
        config: the adapter's config; ``config["base"]`` maps tower -> ``{"name", "fingerprint", …}``.
        actual: the same for the loaded base.
        where: the adapter's folder, for the message.

    Raises:
        UserError: towers or fingerprints differ.
    """
    wanted = config.get("base", {})
    if set(wanted) != set(actual):
        raise UserError(f"{where}: adapts towers {some(sorted(wanted))}; the loaded base has {some(sorted(actual))}")
    for tower in wanted:
        check_fingerprint(config, actual, tower, where)


def check_fingerprint(
    config: Mapping[str, Any], actual: Mapping[str, Mapping[str, Any]], tower: str, where: str | Path = "adapter"
) -> None:
    """Refuse one tower of another base; arguments as :func:`check_base`.

    Raises:
        UserError: its fingerprint differs.
    """
    base = config["base"][tower]
    if base.get("fingerprint") != actual[tower].get("fingerprint"):
        raise UserError(
            f"{where}: trained on {tower} base {base.get('name')} with fingerprint {base.get('fingerprint')}; "
            f"the loaded base is {actual[tower].get('name')} with {actual[tower].get('fingerprint')}; "
            "give the base with the original weights"
        )


@torch.no_grad()
def load_trained(model: nn.Module, tensors: Mapping[str, Tensor], where: str | Path = "adapter") -> None:
    """Copy trained tensors into ``model`` in place; names and shapes must match exactly.

    :class:`vlkit.adapters.mix.Trained` tensors say how much of them to apply.

    Raises:
        UserError: lists missing keys, unexpected keys, or the shapes that differ.
    """
    own = trained_state(unwrap(model))
    missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unexpected:
        listed = [f"missing {some(missing, 20)}"] if missing else []
        listed += [f"unexpected {some(unexpected, 20)}"] if unexpected else []
        raise UserError(f"{where}: weights do not fit the model: {'; '.join(listed)}; are its options the same?")
    wrong = [f"{k} {list(tensors[k].shape)} for {list(own[k].shape)}" for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(f"{where}: shapes do not fit the model: {some(wrong, 20)}; are its options the same?")
    if isinstance(tensors, Trained):
        tensors = mixed(unwrap(model), tensors, tensors.mix)
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def copy_trained(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the trained tensors, on the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in trained_state(unwrap(model)).items()}


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself, without Fabric's wrapper (whose ``module`` attribute holds it)."""
    inner = getattr(model, "module", None)
    return inner if hasattr(model, "_forward_module") and isinstance(inner, nn.Module) else model


def _save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with whole_file(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
