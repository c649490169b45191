"""Adapt a classifier that gives only class scores: BlackVIP learns a prompt that is added to each image.

    python tasks/classification/black_box.py                              # the embedded base behind the protocol
    python tasks/classification/black_box_server.py --port 8000 &         # or a service
    python tasks/classification/black_box.py --http.url http://127.0.0.1:8000 --budget 100000 --output runs/api
    python tasks/classification/black_box.py --http.url http://127.0.0.1:8000 --budget 200000 --output runs/api --resume

Reads top to bottom: data, black box, coordinator, zero-shot scores, training, report. After an outage of the service,
or when the budget is spent, --resume goes on with the answer that was missing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vlkit.adapters.blackvip.coordinator import Coordinator, Feature
from vlkit.adapters.blackvip.decoder import Arch
from vlkit.cli.config import run as cli
from vlkit.data.manifest import Dataset
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase, Preprocess
from vlkit.encoders.load import load_base
from vlkit.engine.asking import BlackBox, HttpOptions
from vlkit.engine.black_box import BlackBoxTraining
from vlkit.engine.distributed import make_fabric
from vlkit.engine.loader import EpochLoader
from vlkit.engine.progress import ProgressBar, peak_memory_bytes
from vlkit.engine.report import Report, print_report
from vlkit.engine.run_folder import FREE_FLAGS, RunFolder, open_run
from vlkit.engine.spsa import SpsaOptions
from vlkit.errors import UserError
from vlkit.tasks.classification.black_box import save_coordinator
from vlkit.tasks.classification.data import LabelledImages
from vlkit.tasks.classification.dataset import Demo, classification_dataset
from vlkit.tasks.classification.evaluate import metrics_of
from vlkit.tasks.classification.pipeline import zero_shot_pipeline
from vlkit.tasks.classification.prompted import http_box, local_box
from vlkit.tasks.classification.prompts import PromptOptions, prompts_of
from vlkit.tasks.classification.shots import few_shot
from vlkit.tasks.classification.task import TASK
from vlkit.tasks.splits import data_identity, reported_split

log = logging.getLogger(__name__)

FREE = FREE_FLAGS | {"budget", "save_every", *(f"http.{name}" for name in asdict(HttpOptions()) if name != "gives")}
"""Flags that a continued run may change."""
TEST_BATCH = 100


@dataclass
class Data:
    """Dataset to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/image_folder.py); default: the demo dataset, made on first use."""
    demo: Demo = "kinds"
    """Demo dataset: kinds (drawn things in a style new to the base), or dark (the same images at half the exposure)."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that stands in for a missing test split; BlackVIP does not validate."""
    test: str = "test"
    """Split to report on; if missing, the validation split."""
    shots: int = 16
    """Images per class to train on; 0 = all images."""
    shots_seed: int = 1
    """Seed of that draw (1, 2 and 3 in the paper)."""
    augment: Literal["none", "crop", "flip", "wide"] = "none"
    """Augmentation of training images: none (the paper's synthetic sets), crop, flip, or wide (crops of 8 to 100 % of
    the area, mirrored: the paper's other sets)."""


@dataclass
class Config:
    """Adapt a classifier that gives only class scores (BlackVIP)."""

    output: Path | None = None
    """Run folder (default: runs/black_box/<time>)."""
    data: Data = field(default_factory=Data)
    base: str | None = None
    """Sets --target and --encoder at once."""
    target: str = "tiny"
    """The black box without --http.url: this base with class prompts, in this process; it gives scores alone."""
    image_size: int | None = None
    """Side of the target's images in pixels, if not that of its base."""
    http: HttpOptions = field(default_factory=HttpOptions)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    encoder: str = "tiny"
    """Base whose image tower the coordinator reads; it stays frozen and need not be the target's."""
    feature: Feature = "auto"
    """What it reads there: cls (class token after the last block), normed (behind the final norm) or pooled; auto = cls
    if there is a class token, else pooled."""
    channels: int = 32
    """Channels of the decoder's first grid (published: 32 behind a ViT, 64 behind a ResNet-50)."""
    arch: Arch = "vit"
    """Published decoder: vit, or resnet (other groups in the first layer)."""
    border: int = 0
    """Learn a border of this many pixels instead of a decoder (the baseline VP: 30, with --spsa.a 10 to 20); 0 =
    BlackVIP."""
    eps: float = 1.0
    """Factor on the prompt (0.2 to 1 in the paper)."""
    spsa: SpsaOptions = field(default_factory=SpsaOptions)
    epochs: int = 100
    """Passes over the training images (published: 5000)."""
    batch_size: int = 128
    """Images per step; each is asked 2 --spsa.averages times."""
    budget: int | None = None
    """Most images to ask the black box for, both measurements of the test split included."""
    seed: int = 0
    """Seed of the initial decoder, the order of the images, and the directions."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the coordinator."""
    resume: bool = False
    """Continue the run in --output from the last answer."""
    save_every: int = 10
    """Steps between checkpoints. Each error and Ctrl-C writes one too."""

    def __post_init__(self) -> None:
        if self.base is not None:
            self.target = self.encoder = self.base
        for name in ("epochs", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.border < 0:
            raise UserError(f"--border {self.border}: must be 0 or more")
        if not 0 < self.eps < float("inf"):
            raise UserError(f"--eps {self.eps}: must be above 0, and finite")


def main(config: Config) -> None:
    fabric = make_fabric(config.device, "32-true", config.seed)
    folder = open_run(config, "black_box", fabric, FREE)
    dataset = classification_dataset(config.data.root, config.data.demo)
    test = reported_split(dataset, config.data, held_out=True)
    train, _ = few_shot(dataset.records(config.data.train), [], config.data.shots, config.data.shots_seed)
    encoder = load_base(config.encoder)
    target, preprocess, asked_model = black_box(config, dataset)

    coordinator = make_coordinator(config, encoder, preprocess).to(fabric.device)
    examples = LabelledImages(dataset, train, image_transform(preprocess, config.data.augment))
    loader = EpochLoader(examples, config.batch_size, config.seed, collate=collate)
    mean, std = (fabric.to_device(torch.tensor(v).view(3, 1, 1)) for v in (preprocess.mean, preprocess.std))
    identity = {"encoder": encoder.identity["image"], **data_identity(dataset, config.data.train)}
    training = BlackBoxTraining(
        coordinator, target, loader, config.spsa, mean, std, folder.checkpoint, identity, config.seed
    )
    if training.restore():
        folder.rewind_log(training.spsa.step, training.spsa.step)
        log.info("%s: continuing at step %d, %d images asked", folder.path, training.spsa.step, target.asked)

    tested = LabelledImages(dataset, dataset.records(test), image_transform(preprocess))
    before = measured(folder, "before")
    if before is None:
        with saving(training):
            plain = scores_of(target, tested, lambda pixels: pixels * std.cpu() + mean.cpu())
        before = metrics_of(plain, tested.labels)
        folder.log(step=0, split=test, when="before", asked=target.asked, **before)
        training.save()
    finished = training.spsa.step == config.epochs * len(loader)
    after = measured(folder, "after", training.spsa.step) if finished else None
    if after is None:
        train_until(training, allowed_steps(config, training, len(tested)), config, folder)
        training.save()
        training.use_weights()
        with torch.no_grad(), saving(training):
            prompted = lambda pixels: (coordinator(fabric.to_device(pixels)) * std + mean).cpu()  # noqa: E731
            after = metrics_of(scores_of(target, tested, prompted), tested.labels)
        folder.log(step=training.spsa.step, split=test, when="after", asked=target.asked, **after)
        training.save()
    training.use_weights()
    save_coordinator(folder.path, coordinator, config.encoder, preprocess, dataset.extra["classes"], asked_model)
    report(config, folder, training, before, after, test, dataset)


def black_box(config: Config, dataset: Dataset) -> tuple[BlackBox, Preprocess, dict[str, Any]]:
    """The target, how its images are cut and normalised, and its record in ``coordinator.json``."""
    base = load_base(config.target, image_size=config.image_size)
    if config.http.url:
        box = http_box(config.http, dataset.extra["classes"], config.budget)
        # Only what the coordinator sees depends on the base; a service gets image files.
        return box, base.preprocess, {"url": config.http.url, "gives": config.http.gives}
    prompts = prompts_of(dataset, config.prompts)
    pipeline = zero_shot_pipeline(config.target, prompts, config.device, base)
    record = {"base": config.target, "image_size": config.image_size}
    record |= {"templates": list(prompts.templates), "texts": prompts.own}
    return local_box(pipeline, config.budget), base.preprocess, record


def make_coordinator(config: Config, encoder: ClipBase, preprocess: Preprocess) -> Coordinator:
    """The coordinator for the target's images."""
    return Coordinator(
        encoder.image,
        preprocess.mean,
        preprocess.std,
        preprocess.size,
        config.eps,
        config.channels,
        config.arch,
        config.feature,
        encoder.preprocess.size,
        config.border,
    )


def allowed_steps(config: Config, training: BlackBoxTraining, tested: int) -> int:
    """Steps of the run: as many as the epochs have, and as the budget pays for with the last measurement."""
    loader = training.loader
    wanted = config.epochs * len(loader)
    if config.budget is None:
        return wanted
    per_step = config.spsa.evaluations * loader.batch_size
    left = config.budget - training.target.asked - tested
    paid = training.spsa.step + max(0, left) // per_step
    if left < 0 or (paid == training.spsa.step and paid < wanted):
        need = training.target.asked + tested + per_step
        raise UserError(f"--budget {config.budget}: one step and the last measurement need {need} images; raise it")
    if paid < wanted:
        log.info("the budget pays for %d of %d steps of %d images", paid, wanted, per_step)
    return min(wanted, paid)


def train_until(training: BlackBoxTraining, steps: int, config: Config, folder: RunFolder) -> None:
    """Take the steps; log and save every ``--save_every``."""
    asked = training.target.asked
    with ProgressBar(steps, shown=True, label="train") as bar:
        for loss in training.steps(steps):
            step = training.spsa.step
            rate = (training.target.asked - asked) / max(training.seconds, 1e-9)
            bar.advance(step, loss, rate, peak_memory_bytes(training.mean.device))
            if step % config.save_every == 0 or step == steps:
                folder.log(step=step, epoch=step / len(training.loader), loss=loss, asked=training.target.asked)
                training.save()


def scores_of(target: BlackBox, examples: LabelledImages, to_pixels: Any) -> Tensor:
    """The black box's logits [N, C] for a split; ``to_pixels``: normalised pixels -> pixels 0 .. 1."""
    found = []
    for start in range(0, len(examples), TEST_BATCH):
        pixels = torch.stack([examples[i][0] for i in range(start, min(start + TEST_BATCH, len(examples)))])
        found.append(target.scores(to_pixels(pixels).clamp(0, 1)))
    return torch.cat(found)


@contextlib.contextmanager
def saving(training: BlackBoxTraining) -> Iterator[None]:
    """Write a checkpoint if the block fails: it counts the images that were asked."""
    try:
        yield
    except BaseException:
        training.save()
        raise


def measured(folder: RunFolder, when: str, step: int = 0) -> dict[str, float] | None:
    """Metrics that an earlier part of the run logged at ``step``."""
    lines = [line for line in folder.read_log() if line.get("when") == when and line["step"] == step]
    known = ("step", "split", "when", "asked")
    return {key: value for key, value in lines[-1].items() if key not in known} if lines else None


def report(
    config: Config,
    folder: RunFolder,
    training: BlackBoxTraining,
    before: dict[str, float],
    after: dict[str, float],
    test: str,
    dataset: Dataset,
) -> None:
    """Write ``metrics.json`` and the model card, and print the numbers."""
    steps, asked = training.spsa.step, training.target.asked
    in_training = steps * config.spsa.evaluations * training.loader.batch_size
    decoder = training.coordinator.decoder
    found = Report(
        task=TASK.name,
        base=config.http.url or config.target,
        adapter={
            "kind": "vp" if config.border else "blackvip",
            "encoder": config.encoder,
            "eps": config.eps,
            **asdict(config.spsa),
        },
        split=test,
        before=before,
        after=after,
        trainable_parameters=sum(p.numel() for p in decoder.parameters()),
        total_parameters=sum(p.numel() for p in training.coordinator.parameters()),
        saved_activation_bytes=0,
        peak_memory_bytes=peak_memory_bytes(training.mean.device),
        train_seconds=training.seconds,
        examples_per_second=in_training / max(training.seconds, 1e-9),
        seed=config.seed,
        more={"images_asked": {"training": in_training, "all": asked}, "steps": steps, "shots": config.data.shots},
    )
    folder.write_report(found, {"name": dataset.name, "images per step": training.loader.batch_size})
    print_report(found, folder.path, TASK.scores, "zero-shot", f"{in_training:,} images asked in training")


def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Examples -> pixels [B, 3, H, W] and labels [B]."""
    pixels, labels = zip(*examples, strict=True)
    return torch.stack(pixels), torch.tensor(labels)


if __name__ == "__main__":
    cli(main, Config)
