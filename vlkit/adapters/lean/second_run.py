"""A graph whose backward makes its outputs again: what :mod:`vlkit.adapters.lean.recompute` is built on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Conditions:
    """Random state and autocast as they are now, to be had again later.

    Args:
        device: where the work is done.
        random: whether it draws random numbers.
    """

    def __init__(self, device: torch.device, random: bool) -> None:
        self._device, self._states = device, None
        self._autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        if random:
            on_cuda = device.type == "cuda"
            self._states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_cuda else None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within it, things are as they were; afterwards they are as if nothing had been drawn."""
        enabled, dtype = self._autocast
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.autocast(self._device.type, dtype=dtype, enabled=enabled):
            if self._states is None:
                yield
                return
            with torch.random.fork_rng(devices=devices):
                torch.set_rng_state(self._states[0])
                if self._states[1] is not None:
                    torch.cuda.set_rng_state(self._states[1], self._device)
                yield


def attach(
    second_run: Callable[..., Tensor],
    pieces: list[Any],
    outputs: list[Tensor],
    inputs: Sequence[Tensor] | None = None,
    owner: nn.Module | None = None,
) -> tuple[Tensor, ...]:
    """Hang ``outputs``, made without a graph, into one whose backward makes each of them again.

    The graph can be gone through once: backward lets go of the pieces.

    Args:
        second_run: (piece[, input]) -> the output again, with gradient.
        pieces: one for each output, with its ``conditions``.
        outputs: from the first run; without gradient enabled they are returned as they are.
        inputs: one for each output, if the gradient passes on to them.
        owner: whose parameters get a gradient.
    """
    if not torch.is_grad_enabled():
        return tuple(outputs)
    parameters = [p for p in owner.parameters() if p.requires_grad] if owner is not None else []
    return _Again.apply(second_run, pieces, outputs, len(inputs or ()), *(inputs or ()), *parameters)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        second_run: Callable[..., Tensor],
        pieces: list[Any],
        outputs: list[Tensor],
        inputs: int,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.second_run, ctx.pieces, ctx.inputs = second_run, pieces, inputs
        ctx.save_for_backward(*leaves)  # parameters, too: a change before backward would be noticed
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if ctx.pieces is None:
            raise RuntimeError("the lean route frees what it kept as backward goes along: it can be taken only once")
        saved = ctx.saved_tensors  # once: inside torch's checkpoint a second look is an error
        inputs, parameters = saved[: ctx.inputs], saved[ctx.inputs :]
        pieces, ctx.pieces = ctx.pieces, None
        found: list[Tensor | None] = [None] * (len(inputs) + len(parameters))
        for i, gradient in enumerate(gradients):
            piece, pieces[i] = pieces[i], None
            if gradient is None:
                continue
            own = [inputs[i].detach().requires_grad_()] if inputs else []
            with torch.enable_grad(), piece.conditions.again():
                output = ctx.second_run(piece, *own)
            del piece
            news = list(torch.autograd.grad(output, [*own, *parameters], gradient, allow_unused=True))
            del output
            if own:
                found[i] = news.pop(0)
            for place, new in enumerate(news, start=len(inputs)):
                if new is not None:
                    found[place] = new if found[place] is None else found[place].add_(new)
            del news
        return None, None, None, None, *found
