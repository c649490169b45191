"""Count the bytes of live tensors, and those that a forward saves for its backward (saved activations)."""

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
    """Count the bytes of live storages that were created inside the ``with`` block, on any device, also fake ones.

    Each storage counts once with its full size, no matter how many tensors and views share it. Storages from before
    the block (parameters, inputs) do not count; gradients and optimizer state created inside do. Temporary memory
    inside an operation is not visible.

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
        # The storage of an argument (base of a view, target of an in-place operation) is not new.
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in given and id(storage) not in self._alive:
                self._add(storage)
        return result

    def kept_for(self, loss: Tensor, model: nn.Module) -> int:
        """Bytes of ``current`` that the backward of ``loss`` needs: all but the loss itself and the model's tensors."""
        gc.collect()  # garbage in reference cycles is still alive but not needed for backward
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
    """Tensors in the arguments or result of an operation, also inside tuples, lists and dicts."""
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
    """Inside the context, the garbage collector only visits objects that were created inside it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def saved_bytes(model: nn.Module, backward_of: Callable[[], Tensor]) -> int:
    """Saved activations: bytes that one forward keeps alive for its backward.

    Every tensor that the forward created and its graph still holds counts, no matter who holds it: autograd, a custom
    ``Function``, the closure of a checkpoint. Parameters and buffers of ``model``, the inputs and the loss itself do
    not count. This runs one extra forward without side effects: random state and buffers (batch norm statistics) are
    restored.

    Args:
        model: the trained model.
        backward_of: runs the forward of one step with gradient and returns the tensor to call ``backward`` on.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), LiveBytes() as live:
        kept = live.kept_for(backward_of(), model)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return kept
