"""Golden files: reading one, and comparing it with what vlkit makes of it.

A golden file is ``NAME.safetensors`` with ``NAME.json`` beside it: a published module's weights, inputs, output and
gradients, under the names that published checkpoints use. A *case* (see ``parity.py``) rebuilds the module from vlkit
and runs it; this file knows nothing of any module.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlkit.errors import UserError

LIMITS = {"float64": 1e-9, "float32": 1e-5}
GRADIENT_FLOOR = {"float64": 1e-5, "float32": 1e-2}


@dataclass(frozen=True)
class Golden:
    """One golden file.

    Attributes:
        name: the file's name without its ending.
        about: the JSON beside it.
        tensors: everything in the file; ``weight.…``, ``input.…``, ``output``, ``probe``, ``grad.…`` and so on.
        dtype: of the tensors, and so of the module to rebuild.
    """

    name: str
    about: dict[str, Any]
    tensors: dict[str, Tensor]
    dtype: torch.dtype

    @property
    def config(self) -> dict[str, Any]:
        return self.about["config"]

    @property
    def training(self) -> bool:
        return self.about["mode"] == "train"

    def double(self) -> Golden:
        """The same file in double precision; its limits stay those of the precision it was made in."""
        tensors = {name: t.double() if t.is_floating_point() else t for name, t in self.tensors.items()}
        return replace(self, tensors=tensors, dtype=torch.float64)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix``, without it."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}

    def leaves(self) -> dict[str, Tensor]:
        """Fresh copies of the inputs; those that the file holds a gradient for ask for one."""
        return {
            name: tensor.clone().requires_grad_(f"grad.input.{name}" in self.tensors)
            for name, tensor in self.part("input.").items()
        }


@dataclass
class Rebuilt:
    """What vlkit made of a golden file.

    Attributes:
        output: shaped like the file's.
        weights: the parameters that train, by published name.
        inputs: the leaves that went in.
        aux: secondary outputs by name.
        buffers: buffers after the forward, by published name.
        constants: entries of the file's config -> the value in use here, read off the module; None: no such thing here
            (the file lists it for another method).
    """

    output: Tensor
    weights: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    aux: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """How close a golden file and vlkit are.

    Attributes:
        name: of the file.
        limit: largest relative error allowed.
        outputs: largest relative error of the output, the secondary outputs and the buffers.
        gradients: largest relative error of the gradients; None: the file has none.
        problems: what is wrong, one line each; empty = passed.
    """

    name: str
    limit: float = 0.0
    outputs: float = math.nan
    gradients: float | None = None
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        if math.isnan(self.outputs):
            return f"{self.name}: FAILED"
        gradients = "none" if self.gradients is None else f"{self.gradients:.1e}"
        verdict = "FAILED" if self.problems else "ok"
        return f"{self.name}: outputs {self.outputs:.1e}, gradients {gradients} (limit {self.limit:.0e}): {verdict}"


def read_golden(path: str | Path) -> Golden:
    """Read a golden file and the JSON beside it; ``path`` is the one or the other.

    Raises:
        UserError: one of the two is not there or cannot be read.
    """
    path = Path(path)
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(path.with_suffix(".safetensors"))
        return Golden(path.stem, about, tensors, getattr(torch, about["dtype"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read ({reason}); a golden file is NAME.safetensors with NAME.json beside it"
        ) from None


def compare(golden: Golden, rebuilt: Rebuilt) -> Report:
    """Backward through ``sum(output * probe)`` (a file without probe: the sum), then compare everything the file holds.

    Errors are the largest absolute difference of a tensor over its largest magnitude. A gradient may be nothing but
    rounding noise (a bias in front of a batch norm that uses batch statistics, a bias on softmax keys): its own
    magnitude, some 1e-15 among gradients of about 1, is no scale. So a gradient's scale is at least
    ``GRADIENT_FLOOR`` times the largest gradient of the file: what passes is then still below 1e-14 (float64) or 1e-7
    (float32) of that largest gradient, which is the size of rounding itself.
    """
    report = Report(golden.name, LIMITS[golden.about["dtype"]])
    _check_constants(golden, rebuilt, report)
    seen = {"output": rebuilt.output, **{f"aux.{name}": tensor for name, tensor in rebuilt.aux.items()}}
    seen |= {f"after.{name}": tensor for name, tensor in rebuilt.buffers.items()}
    report.outputs = 0.0
    for name, expected in golden.tensors.items():
        if name == "output" or name.startswith(("aux.", "after.")):
            error = _error(seen.get(name), expected, 0.0)
            report.outputs = max(report.outputs, error)
            _judge(report, name, seen.get(name), error)
    if golden.about["gradients"] != "none" and rebuilt.output.shape == golden.tensors["output"].shape:
        probe = golden.tensors.get("probe", torch.ones((), dtype=golden.dtype))
        (rebuilt.output * probe).sum().backward()
        _check_gradients(golden, rebuilt, report)
    return report


def _check_constants(golden: Golden, rebuilt: Rebuilt, report: Report) -> None:
    """Every number of the config that no size of a tensor can betray must be the one in use here."""
    for key, value in golden.config.items():
        hidden = any(word in key for word in ("eps", "temperature", "momentum", "clamp", "masked"))
        if hidden and key not in rebuilt.constants:
            report.problems.append(f"config {key} = {value} is not compared with anything")
        if rebuilt.constants.get(key, value) not in (None, value):
            report.problems.append(f"config {key} is {value}, here it is {rebuilt.constants[key]}")


def _check_gradients(golden: Golden, rebuilt: Rebuilt, report: Report) -> None:
    expected = golden.part("grad.")
    largest = max((float(tensor.abs().max()) for tensor in expected.values()), default=0.0)
    floor = GRADIENT_FLOOR[golden.about["dtype"]] * largest
    leaves = {f"weight.{name}": leaf for name, leaf in rebuilt.weights.items()}
    leaves |= {f"input.{name}": leaf for name, leaf in rebuilt.inputs.items()}
    report.gradients = 0.0
    for name, gradient in expected.items():
        leaf = leaves.get(name)
        got = None if leaf is None else leaf.grad
        error = _error(got, gradient, floor)
        report.gradients = max(report.gradients, error)
        _judge(report, f"grad.{name}", got, error)
    unused = {f"weight.{name}" for name in golden.about.get("unused_in_graph", ())}
    for name, leaf in leaves.items():
        if name.startswith("weight.") and name not in expected and name not in unused and leaf.grad is not None:
            report.problems.append(f"grad.{name}: trained here, without gradient in the file")


def _error(got: Tensor | None, expected: Tensor, floor: float) -> float:
    if got is None or got.shape != expected.shape:
        return math.inf
    got, expected = got.detach().double(), expected.double()
    differences = torch.where(got == expected, 0.0, (got - expected).abs())  # equal infinities do not differ
    difference = float(differences.max()) if expected.numel() else 0.0
    if difference == 0.0:
        return 0.0
    finite = expected[expected.isfinite()]
    scale = max(float(finite.abs().max()) if finite.numel() else 0.0, floor)
    return difference / scale if math.isfinite(difference) and scale else math.inf


def _judge(report: Report, name: str, got: Tensor | None, error: float) -> None:
    if got is None:
        report.problems.append(f"{name}: in the file, not here")
    elif error > report.limit:
        report.problems.append(f"{name}: relative error {error:.1e}")
