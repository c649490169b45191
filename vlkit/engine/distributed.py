"""Single and multi-process runs: the Fabric of a run, and the collectives that training and evaluation need."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from vlkit.errors import UserError


class _NothingToSkip:
    """Fabric's switch for skipping gradient synchronisation; backward synchronises nothing here."""

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class AveragingStrategy(DDPStrategy):
    """Processes that average gradients once per step (:func:`average_gradients`) instead of during backward.

    Only the adapter trains, so one small all-reduce replaces the hooks of DistributedDataParallel. A step may then run
    any number of forwards and backwards, call any method of the model and leave parameters unused.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._backward_sync_control = cast(Any, _NothingToSkip())

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Leave the module as it is."""
        return module


_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it, losses see this process's batch alone: for work that every process repeats on the same examples."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def gathers(fabric: Fabric | None) -> bool:
    """Whether a loss has to gather from other processes: there are several, and it is not inside :func:`alone`."""
    return fabric is not None and fabric.world_size > 1 and not _alone.get()


def make_fabric(device: str = "auto", precision: str = "auto", seed: int = 0) -> Fabric:
    """Set up device, precision and processes, and seed every generator.

    The number of processes comes from the launcher: ``torchrun --nproc_per_node N script.py …`` or
    ``fabric run --devices N script.py …``; without one it is a single process on a single device.

    Args:
        device: ``auto`` (CUDA if there is a device), ``cpu``, ``cuda`` or ``mps`` (the GPU of a Mac).
        precision: a precision of Fabric, or ``auto``: mixed on CUDA (bfloat16 where the device has it, else float16
            with loss scaling), float32 elsewhere.
        seed: seed of the run, equal on all processes.

    Raises:
        UserError: the device is not available, or flags contradict the launcher.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device found; use --device cpu (or auto)")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "--device mps: no GPU of a Mac found (or torch was built without it); use --device cpu (or auto)"
        )
    accelerator = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "auto":
        has_bfloat16 = accelerator == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "32-true" if accelerator != "cuda" else "bf16-mixed" if has_bfloat16 else "16-mixed"
    if precision == "16-mixed" and accelerator != "cuda":
        raise UserError("--precision 16-mixed needs CUDA; use 32-true or bf16-mixed elsewhere")
    if precision == "64-true" and accelerator == "mps":
        raise UserError("--precision 64-true: the GPU of a Mac has no float64; use 32-true, or --device cpu")
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    _separate_restarts(accelerator, nodes=node_count())
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices="auto" if "LT_DEVICES" in os.environ else local,
            num_nodes=node_count(),
            precision=precision,  # type: ignore[arg-type]
            strategy=AveragingStrategy() if world > 1 else "auto",
        )
    except ValueError as error:
        raise UserError(f"launcher and flags disagree: {error}") from None
    fabric.launch()
    if world > 1:
        atexit.register(_close)
    fabric.seed_everything(seed, workers=False, verbose=False)
    return fabric


def node_count() -> int:
    """Number of machines (or launcher agents) that the processes run on."""
    return max(1, int(os.environ.get("WORLD_SIZE", 1)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _close() -> None:
    """Leave the process group before Python exits: a thread of Gloo that is still running then would abort the process,
    and torchrun would count a finished run as failed. Fabric does this for NCCL only.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _separate_restarts(accelerator: str, nodes: int) -> None:
    """Let processes that torchrun restarted (``--max-restarts``) find each other.

    torchrun keeps one store over all restarts unless ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` is set, and the keys in
    it do not distinguish attempts: new processes read the addresses of dead ones and cannot connect. On one node, a
    prefix with the attempt's number separates the keys. Across nodes this fails: each node counts its own attempts.

    Raises:
        UserError: several nodes, restarts and a shared store: the first restart would fail, after hours.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not shared or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    if nodes > 1:
        raise UserError(
            "torchrun --max-restarts: restarted processes on several nodes would not find each other; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in front of torchrun on each node"
        )
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if attempt and not torch.distributed.is_initialized():
        store, rank, world = next(torch.distributed.rendezvous("env://"))
        apart = torch.distributed.PrefixStore(f"restart {attempt}", store)
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if accelerator == "cuda" else None
        backend = "nccl" if accelerator == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=apart, rank=rank, world_size=world, device_id=device)


def make_equal(fabric: Fabric, tensors: list[Tensor]) -> None:
    """Overwrite ``tensors`` with those of process 0, in place."""
    if fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), src=0)


def average_numbers(fabric: Fabric, numbers: dict[str, Any]) -> dict[str, float]:
    """Means of numbers or scalar tensors over the processes; all processes must pass the same keys."""
    # The GPU of a Mac has no float64.
    device = "cpu" if fabric.device.type == "mps" else fabric.device
    packed = torch.stack([torch.as_tensor(n).detach().to(device).double() for n in numbers.values()])
    if fabric.world_size > 1:
        torch.distributed.all_reduce(packed)
    return dict(zip(numbers, (packed / fabric.world_size).tolist(), strict=True))


@torch.no_grad()
def average_gradients(fabric: Fabric, parameters: list[nn.Parameter], buffers: list[Tensor]) -> None:
    """Replace gradients (and floating point ``buffers``) by their mean over the processes, in place.

    A parameter that no process used keeps no gradient, as with one process. If only some processes used it, its
    gradient counts as zero on the others.
    """
    if fabric.world_size == 1 or not parameters:
        return
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    torch.distributed.all_reduce(used)
    shared: list[Tensor] = [buffer for buffer in buffers if buffer.is_floating_point()]
    for parameter, count in zip(parameters, used.tolist(), strict=True):
        if count:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            shared.append(parameter.grad)
    for dtype in dict.fromkeys(tensor.dtype for tensor in shared):  # not a set: every process needs the same order
        _average_flat([tensor for tensor in shared if tensor.dtype == dtype], fabric.world_size)


def _average_flat(tensors: list[Tensor], world: int) -> None:
    """Average tensors of one dtype in a single collective."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= world
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def my_share(fabric: Fabric, count: int) -> range:
    """The indices 0 .. count - 1 that this process evaluates: every ``world_size``-th one."""
    return range(fabric.global_rank, count, fabric.world_size)


def gather_shares(fabric: Fabric, rows: Tensor, count: int) -> Tensor:
    """Gather the rows of every process's :func:`my_share`, in the order of the indices, without duplicates.

    Args:
        fabric: the run's Fabric.
        rows: [len(my_share), ...], result i for index ``my_share[i]``; the trailing sizes must agree between
            processes.
        count: total number of indices.

    Returns:
        [count, ...] on every process.
    """
    if fabric.world_size == 1:
        return rows
    longest = -(-count // fabric.world_size)
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    everywhere = cast(Tensor, fabric.all_gather(padded))  # [W, longest, ...]; index i is at [i % W, i // W]
    return everywhere.transpose(0, 1).flatten(0, 1)[:count]


def gather_objects(fabric: Fabric, value: Any) -> list[Any]:
    """The ``value`` of every process (any picklable object) in rank order, on every process."""
    if fabric.world_size == 1:
        return [value]
    everywhere: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(everywhere, value)
    return everywhere
