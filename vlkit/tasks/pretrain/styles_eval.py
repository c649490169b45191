"""Evaluation of a base by style: recall at 1 within each, and a linear probe on patch tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from vlkit.drawn.kinds import KINDS
from vlkit.drawn.styled_samples import DEMO, PER_KIND, PROBE, VALIDATION, StyledChunks
from vlkit.drawn.styles import HELD_OUT, MIXED, SEEN
from vlkit.tasks.pretrain.objective import Objective, patch_weights
from vlkit.tasks.pretrain.pool import chunk_loader

ALL = (*SEEN, MIXED, *HELD_OUT, DEMO)
SCENES, PROBE_SCENES, CHUNK = 1000, 3000, 50
COVERED = 0.5
"""Share of a patch that one object must cover for the patch to have a label."""

Drawn = list[Tensor]


def draw_styles(
    seed: int,
    tokenize: Callable[[list[str]], Tensor],
    workers: int,
    styles: Sequence[str] = ALL,
    scenes: int = SCENES,
) -> dict[str, Drawn]:
    """Evaluation scenes by style, and three times as many for the probe (``probe``), with their most detailed captions.

    Each in the format of :class:`vlkit.tasks.pretrain.pool.Collate`. One set of processes draws them all.
    """
    size = min(CHUNK, scenes)
    # Different scenes for each style: a hard scene must not count in all of them.
    parts = [(style, VALIDATION, style, scenes, number * 1_000_000) for number, style in enumerate(styles)]
    parts.append(("probe", PROBE, MIXED, 3 * scenes, 0))
    chunks = [
        StyledChunks(seed, split, count // size, size, first, style, detail=3, captions=1)
        for _, split, style, count, first in parts
    ]
    stream = iter(chunk_loader(ConcatDataset(chunks), tokenize, workers))
    found = {}
    for (name, *_), chunk in zip(parts, chunks, strict=True):
        found[name] = [torch.cat(tensors) for tensors in zip(*(next(stream) for _ in range(len(chunk))), strict=True)]
    return found


@torch.no_grad()
def recalls(objective: Objective, drawn: Drawn, batch: int = 250) -> dict[str, float]:
    """R@1 in both directions in percent, and the best possible value (equal captions cannot be told apart)."""
    images, _, _, captions = drawn
    seen = torch.cat([_embed(objective, part)[0] for part in images.split(batch)])
    read = torch.cat([objective.texts(part[:, 0].long().to(objective.device)) for part in captions.split(batch)])
    scores = seen @ read.T
    partner = scores.diagonal()
    return {
        "i2t_r1": 100 * ((scores >= partner.unsqueeze(1)).sum(1) == 1).float().mean().item(),
        "t2i_r1": 100 * ((scores >= partner).sum(0) == 1).float().mean().item(),
        "ceiling_r1": 100 * len(torch.unique(captions[:, 0], dim=0)) / len(captions),
    }


def _embed(objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    return objective.images(images.to(objective.device).permute(0, 3, 1, 2).float() / 255)


def patch_probe(objective: Objective, drawn: Drawn, steps: int = 400) -> float:
    """Percent of patches whose kind a linear layer on a frozen base's tokens predicts; a third is held out."""
    with torch.no_grad():
        tokens, kinds, scene = labelled_patches(objective, drawn)
    tokens = (tokens - tokens.mean(0)) / tokens.std(0).clamp(min=1e-6)
    train = scene < scene.max() * 2 // 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(tokens.shape[1], len(KINDS)).to(tokens.device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.02, weight_decay=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(layer(tokens[train]), kinds[train]).backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        return 100 * (layer(tokens[~train]).argmax(1) == kinds[~train]).float().mean().item()


def labelled_patches(objective: Objective, drawn: Drawn, batch: int = 250) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [n, W] of patches that mostly show one object, its kind [n] and the index of the scene [n]."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(drawn[0]), batch):
        images, ids, codes = (tensor[start : start + batch].to(objective.device) for tensor in drawn[:3])
        tokens = _embed(objective, images)[1]
        share, thing = patch_weights(ids, codes.shape[1], tokens.shape[1]).max(1)
        image, patch = (share > COVERED).nonzero(as_tuple=True)
        kinds = codes.long()[image, thing[image, patch]] // PER_KIND
        found.append((tokens[image, patch], kinds, image + start))
    tokens, kinds, scenes = (torch.cat(parts) for parts in zip(*found, strict=True))
    return tokens, kinds, scenes


def style_metrics(objective: Objective, drawn: dict[str, Drawn]) -> dict[str, object]:
    """``styles`` (recalls by style), the lowest recall of seen and of held-out styles, and ``patch_probe``."""
    styles = {style: recalls(objective, scenes) for style, scenes in drawn.items() if style != "probe"}

    def lowest(names: Sequence[str]) -> float:
        return min(min(styles[name]["i2t_r1"], styles[name]["t2i_r1"]) for name in names if name in styles)

    return {
        "styles": styles,
        "lowest_r1_seen": lowest([*SEEN, MIXED]),
        "lowest_r1_held_out": lowest([*HELD_OUT, DEMO]),
        "patch_probe": patch_probe(objective, drawn["probe"]),
    }
