"""vlkit: image-text retrieval with any of its methods, as ``tasks/retrieval/train.py`` trains it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from job import Job
from torch.utils.data import DataLoader

from vlkit.adapters import ADAPTERS
from vlkit.data.transforms import image_transform
from vlkit.encoders.load import load_base
from vlkit.engine.optim import make_optimizer
from vlkit.tasks.contrastive import gather_pairs, info_nce
from vlkit.tasks.retrieval.data import ImageTextPairs, PairCollate
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.retrieval.task import TASK
from vlkit.tasks.two_tower import HeadOptions

METHODS = {
    "SHERL": ("sherl", {}),
    "SHERL, int8 taps, chunks of 8": ("sherl", {"tap_dtype": "int8", "early_chunk": 8}),
    "linear": ("linear", {}),
    "LoRA": ("lora", {}),
    "full": ("full", {}),
}


def main() -> None:
    job = Job.from_arguments()
    kind, options = METHODS[job.method]
    base = load_base(f"hf:{job.base}")
    model = build_model(base, ADAPTERS[kind](**options), HeadOptions()).to(job.device).train()
    dataset = TASK.dataset(job.data)
    pairs = ImageTextPairs(dataset, "train", image_transform(base.preprocess), every_caption=False)

    def loop(steps: int, tick: Callable[[], None]) -> None:
        optimizer = make_optimizer({n: p for n, p in model.named_parameters() if p.requires_grad}, 1e-4, 0.01)
        collate = PairCollate(base.tokenize, base.text.trim)
        loader: Any = DataLoader(cast(Any, pairs), job.batch_size, collate_fn=collate, shuffle=True, drop_last=True)
        for pixels, ids, groups in itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps):
            with torch.autocast("cuda", torch.bfloat16, enabled=job.device.type == "cuda"):
                images, texts, scale, _ = model(pixels.to(job.device), ids.to(job.device))
                loss = info_nce(gather_pairs(images, texts, groups.to(job.device)), scale)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tick()

    job.measure(model, loop)


if __name__ == "__main__":
    main()
