"""How fast a T5 encoder learns which word belongs to which thing, by how it begins.

    python benchmarks/comparing_heads.py

Pairs of texts about two things with a colour each, "a red car and a blue cat"; in half of them the second text
exchanges the colours, so both always have the same words. The encoder of a new tiny T5 learns the marks of
``vlkit.drawn.agreement`` and is measured on pairs that it has not seen: 50 % is chance.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.drawn.accounts import VALUES, Account, Said, exchanged, retold
from vlkit.drawn.agreement import Marked, marks_of
from vlkit.drawn.dice import Dice
from vlkit.drawn.kinds import KINDS
from vlkit.encoders.tiny import new_tiny_t5, tiny_t5_tokenizer
from vlkit.tasks.pretrain.agreement import Marker, collate_marked
from vlkit.tasks.pretrain.initial import matching_heads

BEGINNINGS = ("random", "equal tokens", "compared")


@dataclass
class Config:
    """Compare how an encoder begins."""

    samples: int = 12_000
    """Pairs to train on."""
    batch_size: int = 32
    """Pairs per step."""
    lr: float = 1e-3
    """Peak learning rate: linear warm-up over 3 % of the steps, then constant."""
    every: int = 3_000
    """Pairs between two measurements."""
    seed: int = 0
    """Seed of weights and pairs."""


def main(config: Config) -> None:
    points = list(range(config.every, config.samples + 1, config.every))
    table = Table(title="pairs judged right, percent")
    for heading in ("encoder begins", *(f"{n:,}" for n in points)):
        table.add_column(heading, justify="right" if heading[0].isdigit() else "left")
    for beginning in BEGINNINGS:
        table.add_row(beginning, *(f"{share:.0f}" for share in learn(config, beginning)))
    Console().print(table)


def learn(config: Config, beginning: str) -> list[float]:
    """Shares of held-out pairs with a right verdict, in percent, after every ``config.every`` pairs."""
    torch.manual_seed(config.seed)
    tokenizer = tiny_t5_tokenizer()
    model = new_tiny_t5(tokenizer)
    if beginning != "random":
        matching_heads(model, subtract=beginning == "compared")
    marker = Marker(model, tokenizer)
    held_out = collate_marked([pair(config.seed, 1, i) for i in range(400)], tokenizer)
    optimizer = torch.optim.AdamW(model.encoder.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.05)
    steps = -(-config.samples // config.batch_size)
    found: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / (0.03 * steps))
        first = step * config.batch_size
        texts = collate_marked([pair(config.seed, 0, first + i) for i in range(config.batch_size)], tokenizer)
        marker.losses(texts).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (first + config.batch_size) // config.every > len(found):
            model.eval()
            with torch.no_grad():
                found.append(100 * marker.right(held_out)[1].float().mean().item())
            model.train()
    return found


def pair(seed: int, split: int, index: int) -> Marked:
    """A pair of texts with the same words; half of them with exchanged colours."""
    dice = Dice(np.random.default_rng([seed, split, index]))
    kinds, colours = (dice.shuffled(values)[:2] for values in (KINDS, VALUES["colour"]))
    first = Account(tuple(itertools.starmap(Said, zip(kinds, colours, strict=True))))
    second = retold(first, dice)
    if dice.chance(0.5):
        second = exchanged(second, dice) or second
    return marks_of(first, second, dice)


if __name__ == "__main__":
    run(main, Config)
