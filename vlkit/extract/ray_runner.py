"""Shards to parts on a Ray cluster: a pool of actors, each with its own model, takes one shard after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vlkit.data.shards import Shard
from vlkit.errors import UserError, needs
from vlkit.extract.parts import Parts
from vlkit.extract.pipeline import ImageModel, Options, Progress, Summary, embed_shards


class ShardWorker:
    """An actor: holds a model, embeds shards, and writes their parts itself, so that no vector passes through Ray.

    Args:
        open_model: opens the model; called once.
        shards: all shards.
        folder: the folder of parts, the same on every machine.
        options: batches and memory.
    """

    def __init__(
        self, open_model: Callable[[], ImageModel], shards: Sequence[Shard], folder: Path, options: Options
    ) -> None:
        self._model, self._shards, self._options = open_model(), shards, options
        self._parts = Parts.read(folder)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """``{"shard": number}`` -> the fields of its :class:`Summary`, and the number."""
        done = embed_shards([self._shards[int(row["shard"])]], self._model, self._parts, self._options)
        return {**asdict(done), "errors": "\n".join(done.errors), "shard": row["shard"]}


def embed_with_ray(
    shards: Sequence[Shard],
    open_model: Callable[[], ImageModel],
    parts: Parts,
    options: Options,
    actors: int,
    gpus: float = 0,
    progress: Progress = lambda images, shard: None,
) -> Summary:
    """As :func:`vlkit.extract.pipeline.embed_shards`, on the Ray cluster that ``RAY_ADDRESS`` names, else on this
    machine.

    Ray starts a lost actor again and repeats its shard; parts that are whole are skipped.

    Args:
        shards: all shards.
        open_model: picklable; opens the model in an actor.
        parts: where the parts go: a folder that every machine sees.
        options: of each actor.
        actors: at most this many; 0 = as many as there are GPUs, or 4 CPUs each without GPUs.
        gpus: GPUs per actor; 0 = the CPU.
        progress: called after each shard.

    Raises:
        UserError: Ray is not installed, or a worker refused its input.
    """
    with needs("scale", "--runner ray"):
        import ray.data  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    done = Summary()
    todo = [number for number, shard in enumerate(shards) if not parts.holds(shard)]
    done.skipped = len(shards) - len(todo)
    if not todo:
        return done
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # ``progress`` shows it
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    have = ray.cluster_resources()
    actors = actors or int(have.get("GPU", 0) // gpus if gpus else have.get("CPU", 1) // 4)
    # A block per shard: a block is what an idle actor takes next, and what is repeated after a loss.
    rows = ray.data.from_items([{"shard": number} for number in todo], override_num_blocks=len(todo))
    found = rows.map(
        cast(Any, ShardWorker),  # Ray makes the object; its types know functions only
        fn_constructor_args=(open_model, list(shards), parts.path.absolute(), options),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(todo)))),
        num_gpus=gpus or None,
    )
    try:
        for row in found.iter_rows():
            errors = [line for line in row["errors"].split("\n") if line]
            done.add(Summary(row["written"], row["skipped"], row["images"], row["unreadable"], errors))
            progress(row["images"] + row["unreadable"], None)
            progress(0, shards[row["shard"]])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        if cause is None:
            raise
        raise UserError(str(cause)) from None
    return done
