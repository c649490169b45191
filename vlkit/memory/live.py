"""Count bytes as tensors come and go, and what of them a forward keeps for its backward."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Count the storages made inside the ``with`` block that are still alive, on any device and of fake tensors too.

    A storage counts once and whole, however many tensors and views share it. Storages that were there before
    (parameters, inputs) do not count; gradients and optimizer state made inside do. What an operation uses inside
    itself and frees again is not seen.

    Attributes:
        current: bytes alive now.
        peak: most bytes alive at once so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # A storage that came in as an argument (a view's base, the target of an in-place operation) is not new.
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in given and id(storage) not in self._alive:
                self._add(storage)
        return result

    def kept_for(self, loss: Tensor, model: nn.Module) -> int:
        """What of ``current`` the backward of ``loss`` needs: all but the loss itself and the model's tensors."""
        gc.collect()  # garbage in reference cycles is alive, but not for backward
        own = {id(tensor.untyped_storage()) for tensor in (loss, *model.parameters(), *model.buffers())}
        return sum(size for key, (_, size) in self._alive.items() if key not in own)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def forget(_: Any) -> None:
            self._alive.pop(key)
            self.current -= size

        self._alive[key] = weakref.ref(storage, forget), size
        self.current += size
        self.peak = max(self.peak, self.current)


def _tensors(nest: Any) -> Iterator[Tensor]:
    """Those in the arguments or the result of an operation: tensors, and tuples, lists and dicts of them."""
    if isinstance(nest, Tensor):
        if nest.layout == torch.strided:
            yield nest
    elif isinstance(nest, (tuple, list)):
        for each in nest:
            yield from _tensors(each)
    elif isinstance(nest, dict):
        yield from _tensors(tuple(nest.values()))


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """Within it, collections look at what was made within it alone, not at all that a program has loaded."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def saved_bytes(model: nn.Module, backward_of: Callable[[], Tensor]) -> int:
    """Bytes that one forward keeps alive for its backward: saved activations.

    Everything the forward made and its graph still holds counts, whoever holds it: autograd, a custom ``Function``, the
    closure of a checkpoint. Parameters and buffers of ``model``, the inputs (they were there before) and the loss
    itself do not. The forward is run once more than training needs, without a trace: random state and buffers (batch
    norm statistics) are put back.

    Args:
        model: what is trained.
        backward_of: runs the forward of one step, with gradient, and returns what ``backward`` would be called on.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), LiveBytes() as live:
        kept = live.kept_for(backward_of(), model)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return kept
