"""open_clip: its training loop with the image tower locked (LiT) or all weights, on a model of the same sizes."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import open_clip
import torch
from job import Job
from open_clip.transform import image_transform
from open_clip_train.train import train_one_epoch
from PIL import Image
from torch.utils.data import DataLoader


class Pairs(torch.utils.data.Dataset):
    """Images and token ids."""

    def __init__(self, job: Job, transform: Callable[[Any], torch.Tensor], tokenize: Any) -> None:
        self.pairs, self.transform, self.tokenize = job.pairs(), transform, tokenize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path, caption = self.pairs[index]
        with Image.open(path) as image:
            return self.transform(image), self.tokenize([caption])[0]


class Steps:
    """The first batches of endless epochs; it calls ``tick`` when the batch before has been trained on."""

    def __init__(self, loader: DataLoader, steps: int, tick: Callable[[], None], samples: int) -> None:
        self.loader, self.steps, self.tick = loader, steps, tick
        self.num_batches, self.num_samples = steps, samples

    def __iter__(self) -> Iterator[Any]:
        done = 0
        while True:
            for batch in self.loader:
                yield batch
                self.tick()
                done += 1
                if done == self.steps:
                    return


def sizes(job: Job) -> dict[str, Any]:
    """open_clip's config of the sizes in the base's folder."""
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    vision, text = config["vision_config"], config["text_config"]
    return {
        "embed_dim": config["projection_dim"],
        "quick_gelu": vision["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "width": vision["hidden_size"],
            "layers": vision["num_hidden_layers"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
        },
    }


def main() -> None:
    job = Job.from_arguments()
    config = sizes(job)
    model = open_clip.CLIP(**config, output_dict=True).to(job.device)
    if job.method == "locked image tower":
        model.lock_image_tower()
    transform: Any = image_transform(config["vision_cfg"]["image_size"], is_train=False)
    tokenize = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    pairs = Pairs(job, transform, tokenize)
    arguments = Namespace(
        accum_freq=1,
        batch_size=job.batch_size,
        device=str(job.device),
        distill=False,
        distributed=False,
        grad_clip_norm=None,
        horovod=False,
        local_rank=0,
        log_every_n_steps=10**6,
        precision="amp_bf16" if job.device.type == "cuda" else "fp32",
        rank=0,
        skip_scheduler=True,
        wandb=False,
        world_size=1,
    )

    def loop(steps: int, tick: Callable[[], None]) -> None:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        loader = DataLoader(pairs, job.batch_size, shuffle=True, drop_last=True)
        data = Namespace(dataloader=Steps(loader, steps, tick, len(pairs)), set_epoch=lambda epoch: None)
        loss = open_clip.ClipLoss()
        train_one_epoch(model, {"train": data}, loss, 0, optimizer, None, None, None, arguments)
        optimizer.zero_grad()

    job.measure(model, loop)


if __name__ == "__main__":
    main()
