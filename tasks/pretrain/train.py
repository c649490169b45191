"""Pre-train the tiny bases on the drawn pre-training domain; nothing is downloaded, scenes are drawn as needed.

    python tasks/pretrain/train.py --model clip --output runs/pretrain/clip
    python tasks/pretrain/train.py --model t5 --output runs/pretrain/t5 --steps 5000 --batch_size 64 --lr 0.003
    python tasks/pretrain/train.py --model t5 --minutes 6 --supervised 0.55 --grids 0.3 --batch_size 512 --workers 12
    python tasks/pretrain/train.py --world styles --minutes 5 --batch_size 1024 --pool 1500000 --workers 15

The same command resumes from the last checkpoint. Sample n depends only on seed and n, so an interrupted run sees the
same samples as an uninterrupted one. With ``--minutes`` the schedule follows the clock: the run ends in time, and the
number of samples depends on the machine.

It has its own loop, which counts steps of an endless stream and saves a whole base; ``vlkit.engine.fit`` counts epochs
of a dataset and saves an adapter.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.drawn.samples import TRAIN, VALIDATION, PretrainingPairs
from vlkit.encoders.stage import stage_text
from vlkit.encoders.tiny import (
    PREPROCESS,
    TinyTokenizer,
    new_tiny_clip,
    new_tiny_t5,
    tiny_t5_tokenizer,
    vocabulary,
)
from vlkit.engine.hardware import attention_for, fast_bfloat16, keep_freed_memory
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.contrastive import require_negatives
from vlkit.tasks.pretrain.initial import matching_heads
from vlkit.tasks.pretrain.mixture import Batch, Losses, Measure, Shares, training
from vlkit.tasks.pretrain.mixture import batches as text_batches
from vlkit.tasks.pretrain.objective import Objective
from vlkit.tasks.pretrain.pool import Pool, batches, timed_batches
from vlkit.tasks.pretrain.state import load_resume, load_weights, save_resume, save_weights
from vlkit.tasks.pretrain.styles_eval import draw_styles, recalls, style_metrics

PLACE = ("output", "device", "workers", "evaluate_every", "scenes")
"""Settings that do not affect the weights."""


@dataclass
class Config:
    """Pre-train a tiny base."""

    model: Literal["clip", "t5"] = "clip"
    """Base to pre-train."""
    output: Path = Path("runs/pretrain/clip")
    """Run folder: weights, log, resume state."""
    steps: int = 3600
    """Total number of optimizer steps."""
    batch_size: int = 128
    """Samples per step."""
    lr: float = 1e-3
    """Peak learning rate of AdamW: linear warm-up over 5 % of the steps, then cosine to zero."""
    weight_decay: float = 0.05
    """Weight decay on matrices."""
    seed: int = 2024
    """Seed of scenes, order and initial weights."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on; bf16 autocast where the device computes it faster than float32."""
    evaluate_every: int = 200
    """Steps between evaluations, each with a checkpoint; with `minutes`, seconds."""
    workers: int = 1
    """Processes that draw scenes."""
    world: Literal["plain", "styles"] = "plain"
    """Plain drawings or many drawing styles (as for the embedded base; clip only)."""
    minutes: float = 0
    """Minutes to train instead of `steps`, with `world styles` or `model t5`; the learning rate follows the clock."""
    reuse: int = 1
    """Uses of each drawn scene, each augmented, with `world styles` and `steps`; with `minutes` it depends on the
    machine.
    """
    pool: int = 0
    """Drawn scenes kept on the device for reuse; 0 = one batch."""
    regions: Literal["none", "mean", "part"] = "part"
    """Patch tokens that are trained to match the object they show, with `world styles`."""
    region_weight: float = 1.0
    """Weight of the loss of these patch tokens."""
    prefixes: float = 0.5
    """Share of texts of which T5 reads the beginning and writes the rest; in the others it fills in removed spans. Of
    samples that are no tasks.
    """
    rewrites: float = 0.0
    """Share of texts of which T5 reads one caption of a scene and writes another, shorter one."""
    supervised: float = 0.0
    """Share of T5's samples that are supervised tasks: how two texts relate, questions, corrections, lists of facts."""
    agreement: float = 0.0
    """Share of T5's samples that are pairs of texts of which the encoder marks every statement (both agree, the second
    leaves it out or adds it, or they contradict) and judges every thing and the pair.
    """
    matching: bool = True
    """Begin T5's encoder with heads that find equal tokens and compare what stands beside them (a new encoder)."""
    new_encoder: bool = False
    """With `start`: take embeddings and decoder from it, and begin with a new encoder."""
    grids: float = 0.0
    """Share of T5's samples that are captions of grids, which the decoder reads like a captioner's visual tokens."""
    start: Path | None = None
    """Weights to start from (model.safetensors of a run); default: random."""
    scenes: int = 1000
    """Held-out scenes of each style in the last evaluation, and of each objective of T5 in every one."""

    def __post_init__(self) -> None:
        if self.model == "clip":
            require_negatives(self.batch_size, groups=2)  # drawn scenes are all different


@dataclass
class Job:
    """Parts that differ between the two bases."""

    model: nn.Module
    loss: Callable[[Any], Tensor]
    train: Callable[[int], Iterable[Any]]
    evaluate: Callable[[], dict[str, Any]]
    finish: Callable[[], dict[str, Any]] = dict
    """A longer evaluation at the end."""
    pool: Pool | None = None


def clip_job(config: Config, device: torch.device) -> Job:
    """Contrastive pre-training on (image, caption); all captions of the batch are candidates."""
    tokenizer = TinyTokenizer(vocabulary())
    model = new_tiny_clip(tokenizer).to(device)
    text_tower = stage_text(model)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))

    def collate(samples: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in samples]), tokenizer([text for _, text in samples])

    def embed(drawn: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (drawn.to(device) / 255 - mean) / std
        with fast_bfloat16(device):
            images = model.encode_image(pixels, normalize=True)
            texts = text_tower(text_tower.trim(ids).to(device))
        return images.float(), F.normalize(texts.float(), dim=-1)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, texts = embed(*batch)
        logits = model.logit_scale.exp().clamp(max=100) * images @ texts.T
        target = torch.arange(len(logits), device=device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def loader(dataset: PretrainingPairs, workers: int) -> DataLoader:
        return DataLoader(
            dataset, config.batch_size, num_workers=workers, collate_fn=collate, prefetch_factor=4 if workers else None
        )

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        held_out = PretrainingPairs(config.seed, VALIDATION, 1000, detail=3)
        images, texts = (torch.cat(parts) for parts in zip(*(embed(*b) for b in loader(held_out, 0)), strict=True))
        scores, captions = images @ texts.T, [text for _, text in (held_out[i] for i in range(1000))]
        partner = scores.diagonal()
        # Scenes with equal full captions cannot be told apart: at best one of each such set is found.
        ceiling = 100 * len(set(captions)) / len(captions)
        return {
            "i2t_r1": 100 * ((scores >= partner.unsqueeze(1)).sum(1) == 1).float().mean().item(),
            "t2i_r1": 100 * ((scores >= partner).sum(0) == 1).float().mean().item(),
            "ceiling_r1": ceiling,
        }

    def train(first: int) -> DataLoader:
        return loader(PretrainingPairs(config.seed, TRAIN, config.steps * config.batch_size, first), config.workers)

    return Job(model, loss, train, evaluate)


def styles_job(config: Config, device: torch.device) -> Job:
    """Contrastive losses of images with captions and of patch tokens with phrases, on scenes of many styles."""
    tokenizer = TinyTokenizer(vocabulary())
    model = new_tiny_clip(tokenizer).to(device)
    objective = Objective(model, tokenizer, device, config.regions, config.region_weight)
    pool = Pool(config.pool or config.batch_size, device, tokenizer)
    drawn = draw_styles(config.seed, tokenizer, config.workers, scenes=config.scenes)

    def train(first: int) -> Iterable[Any]:
        step = first // config.batch_size
        if config.minutes:
            return timed_batches(pool, config.seed, config.batch_size, config.workers, step)
        return batches(pool, config.seed, config.batch_size, config.reuse, config.workers, step, config.steps)

    def evaluate() -> dict[str, Any]:
        return {style: recalls(objective, drawn[style]) for style in ("plain", "mixed")}

    return Job(model, objective.loss, train, evaluate, lambda: style_metrics(objective, drawn), pool)


def t5_job(config: Config, device: torch.device) -> Job:
    """Text to text: filling in removed spans, writing on, supervised tasks, and captions of grids."""
    tokenizer = tiny_t5_tokenizer()
    model: Any = new_tiny_t5(tokenizer)
    model.to(device)
    if config.matching and (config.new_encoder or not config.start):
        matching_heads(model)
    losses = Losses(model, tokenizer, device)
    shares = Shares(config.supervised, config.grids, config.prefixes, config.rewrites, config.agreement)
    measure = Measure(losses, tokenizer, config.seed, config.scenes)

    def loss(batch: Batch) -> Tensor:
        with fast_bfloat16(device):
            return losses(batch)

    def train(first: int) -> DataLoader:
        steps = 2**31 if config.minutes else config.steps
        step = first // config.batch_size
        return text_batches(
            training(tokenizer, shares, config.seed, config.batch_size, steps, step), config.workers, device
        )

    def evaluate() -> dict[str, Any]:
        with fast_bfloat16(device):
            return measure()

    return Job(model, loss, train, evaluate)


def main(config: Config) -> None:
    check(config)
    torch.manual_seed(config.seed)
    name = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    keep_freed_memory()
    make = t5_job if config.model == "t5" else styles_job if config.world == "styles" else clip_job
    job = make(config, device)
    decayed = [p for p in job.model.parameters() if p.dim() > 1]
    rest = [p for p in job.model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=device.type == "cuda" or None)
    if config.start:
        begin(config.start, job.model, "encoder.block." if config.new_encoder else None)
    done, seconds = resume(config, job, optimizer)
    train(config, job, optimizer, device, done, seconds)
    print(json.dumps(json.loads((config.output / "metrics.json").read_text(encoding="utf-8")), indent=2))


def begin(start: Path, model: nn.Module, new: str | None) -> None:
    """Load weights, but leave parameters whose names begin with ``new`` as they are."""
    own = {name: value.clone() for name, value in model.state_dict().items() if new and name.startswith(new)}
    load_weights(start, model)
    model.load_state_dict(own, strict=False)


def check(config: Config) -> None:
    """Refuse settings that contradict each other."""
    styles = config.world == "styles"
    if styles and config.model == "t5":
        raise UserError("--world styles: only the clip base can be pre-trained on it; use --model clip")
    if not styles and (config.reuse != 1 or config.pool):
        raise UserError("--reuse and --pool need --world styles")
    if not styles and config.minutes and config.model == "clip":
        raise UserError("--minutes needs --world styles or --model t5")
    kinds, texts = (config.supervised, config.agreement, config.grids), (config.prefixes, config.rewrites)
    if any(min(shares) < 0 or sum(shares) > 1 for shares in (kinds, texts)):
        raise UserError(
            "--supervised, --agreement and --grids, and --prefixes and --rewrites, are shares: each sum is at most 1"
        )
    if config.new_encoder and (config.model != "t5" or not config.start):
        raise UserError("--new_encoder: needs --model t5 and --start FILE")
    if config.reuse < 1 or config.batch_size % config.reuse:
        raise UserError(f"--reuse {config.reuse}: give a divisor of --batch_size {config.batch_size}")


def train(
    config: Config, job: Job, optimizer: torch.optim.Optimizer, device: torch.device, done: int, seconds: float
) -> None:
    """Train until the number of steps or the time is reached, with evaluations and checkpoints."""
    console, start = Console(stderr=True), time.perf_counter() - seconds
    limit, every = 60 * config.minutes, 200 if config.minutes else 20
    step, batch_stream, due = done, iter(job.train(done * config.batch_size)), seconds + config.evaluate_every
    last = (done >= config.steps) if not limit else seconds >= limit
    while not last:
        batch = next(batch_stream)
        elapsed = time.perf_counter() - start
        factor = schedule(min(round(1e6 * elapsed / limit), 10**6), 10**6) if limit else schedule(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        with attention_for(device):
            loss = job.loss(batch)
            loss.backward()
        nn.utils.clip_grad_norm_(job.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        last = time.perf_counter() - start >= limit if limit else step == config.steps
        if step % every == 0:
            rate = config.batch_size * (step - done) / (time.perf_counter() - start - seconds)
            drawn = f", {job.pool.drawn} drawn" if job.pool else ""
            console.print(
                f"step {step}{'' if limit else f'/{config.steps}'} loss {loss.item():.3f} {rate:.0f} samples/s{drawn}",
                highlight=False,
            )
        if (elapsed >= due if limit else step % config.evaluate_every == 0) or last:
            due = elapsed + config.evaluate_every
            job.model.eval()
            metrics = job.evaluate() | (job.finish() if last else {})
            job.model.train()
            console.print(f"step {step}: {metrics}", highlight=False)
            save(config, job, optimizer, step, time.perf_counter() - start, metrics)
    if isinstance(batch_stream, Generator):
        batch_stream.close()  # stops the processes that draw ahead


def schedule(step: int, steps: int, warmup: float = 0.05) -> float:
    """Factor on the peak learning rate: linear warm-up, then cosine to zero."""
    start = max(1, round(warmup * steps))
    return (
        (step + 1) / start if step < start else 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))
    )


def save(
    config: Config, job: Job, optimizer: torch.optim.Optimizer, step: int, seconds: float, metrics: dict[str, Any]
) -> None:
    """Write weights, resume state and metrics, each file atomically."""
    drawn = {"drawn": job.pool.drawn} if job.pool else {}
    save_weights(config.output, job.model)
    facts = {"step": step, "seconds": seconds} | drawn
    texts = {name: str(value) for name, value in facts.items()}
    save_resume(config.output, job.model, optimizer, texts | {"settings": settings(config)})
    samples = {"steps": step, "samples": step * config.batch_size, "seconds": round(seconds)} | drawn
    write_json(config.output / "metrics.json", {"config": json.loads(settings(config)), **samples, **metrics})


def settings(config: Config) -> str:
    """The settings that affect the weights, as JSON, without device and speed settings."""
    return json.dumps({k: v for k, v in asdict(config).items() if k not in PLACE}, default=str)


def resume(config: Config, job: Job, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Resume if there is a resume state; returns the steps done and the seconds they took."""
    facts = load_resume(config.output, job.model, optimizer, settings(config))
    if facts is None:
        return 0, 0.0
    if job.pool:
        job.pool.drawn = int(facts["drawn"])
    return int(facts["step"]), float(facts["seconds"])


if __name__ == "__main__":
    run(main, Config)
