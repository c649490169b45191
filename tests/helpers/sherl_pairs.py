"""Every flavour of SHERL on every tower it fits, and how two models with the same weights are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor, nn

from helpers.towers import SPATIAL, TOWERS, prepared
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.encoders.staged import ReadAhead, StagedEncoder, Stream

OPTIONS = {
    "text": SherlOptions(handoff="tokens", flavour="text"),
    "gated": SherlOptions(handoff="tokens", flavour="gated"),
    "mdetr": SherlOptions(handoff="tokens", flavour="mdetr"),
    "conv": SherlOptions(handoff="tokens"),
    "pooled": SherlOptions(handoff="pooled"),
    "pooled_gated": SherlOptions(handoff="pooled", base_gate=True),
}
PAIRS = [
    (tower, flavour)
    for tower in TOWERS
    for flavour in OPTIONS
    if flavour.startswith("pooled") or (flavour == "conv") == (tower in SPATIAL)
]


def build(
    tower: str, flavour: str, init: str = "published", seed: int = 0, reads: str = "pooled", **changes: object
) -> AdaptedEncoder:
    """A model in eval mode, with its weights drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return replace(OPTIONS[flavour], init=init, **changes).build(deepcopy(prepared(tower)), reads).eval()


def wake_(model: AdaptedEncoder) -> AdaptedEncoder:
    """Lift every score above zero: with few examples the ReLU may clip all scores of a layer, and it learns nothing."""
    for score in (model.adapter.aggregator.score, *getattr(model.adapter, "token_scores", ())):
        nn.init.ones_(score.bias)
    return model


def pair(
    tower: str, flavour: str, dtype: torch.dtype = torch.float64, reads: str = "pooled", **lean: object
) -> tuple[AdaptedEncoder, ...]:
    """The plain model and the lean one with the same weights, and a batch."""
    # Without dropout unless asked for: in chunks it draws other numbers than for the whole batch.
    changes = {"dropout": lean.pop("dropout", 0.0)} if flavour == "text" else {}
    if "late" in lean:
        changes["late"] = lean.pop("late")
    plain, model = (
        build(tower, flavour, reads=reads, **changes, **how).to(dtype).train()
        for how in ({"lean": False}, {"lean": True, **lean})
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in plain.adapter.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    wake_(plain)
    model.adapter.load_state_dict(plain.adapter.state_dict())
    x = TOWERS[tower][1]()
    return plain, model, x.to(dtype) if x.is_floating_point() else x


class Read(ReadAhead):
    """The output of a model's early route, in place of its input."""

    def __init__(self, streams: list[Stream]) -> None:
        self._streams = streams

    @classmethod
    def of(cls, model: AdaptedEncoder, x: Tensor) -> Read:
        stream, taps = model.read(x)
        return cls([*taps, stream])

    @property
    def values(self) -> int:
        return self._streams[-1].hidden[0].numel()

    @property
    def device(self) -> torch.device:
        return self._streams[-1].hidden.device

    def __len__(self) -> int:
        return len(self._streams[-1].hidden)

    def split(self, size: int) -> list[ReadAhead]:
        def part(stream: Stream, start: int) -> Stream:
            names = ("hidden", "mask", "summary")
            tensors = {name: getattr(stream, name) for name in names}
            return stream.replace(**{n: None if t is None else t[start : start + size] for n, t in tensors.items()})

        return [type(self)([part(s, start) for s in self._streams]) for start in range(0, len(self), size)]

    def streams(self, base: StagedEncoder) -> Sequence[Stream]:
        return self._streams


class Decoded(Read):
    """Taps that are decoded on each access, as a cache does."""

    def streams(self, base: StagedEncoder) -> Sequence[Stream]:
        return _OnAccess(self._streams)


class _OnAccess(list[Stream]):
    def __getitem__(self, place: int) -> Stream:  # type: ignore[override]
        stream = super().__getitem__(place)
        return stream.replace(hidden=stream.hidden.clone())


def run(model: AdaptedEncoder, forward: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of a loss with every output in it; dropout drawn from a fixed seed."""
    model.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        output = forward()
        (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(6)).to(output)).sum().backward()
    return output.detach(), {n: p.grad.clone() for n, p in model.adapter.named_parameters() if p.grad is not None}


def assert_same(one: tuple[Tensor, dict], other: tuple[Tensor, dict], limit: float) -> None:
    """Largest difference below ``limit`` of the largest magnitude: of each tensor, or of all gradients / 1000."""
    assert (one[0] - other[0]).abs().max() <= limit * other[0].abs().max()
    # A weight that got no gradient from the one may have got zeros from the other.
    names = one[1].keys() | other[1].keys()
    floor = max(float(g.abs().max()) for g in other[1].values()) / 1000
    for name in names:
        a, b = (grads.get(name, torch.zeros(())) for grads in (one[1], other[1]))
        assert float((a - b).abs().max()) <= limit * max(float(b.abs().max()), floor), name
