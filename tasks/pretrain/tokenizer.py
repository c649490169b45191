"""Make the byte-level BPE vocabulary that the tiny CLIP and T5 share.

python tasks/pretrain/tokenizer.py --output vlkit/encoders/assets/tokenizer.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vlkit.cli.config import run
from vlkit.drawn.captions import caption
from vlkit.drawn.scenes import sample_scene
from vlkit.drawn.words import COLOURS, FAMILIAR, PLURALS, SYNONYMS
from vlkit.encoders.tiny import SENTINELS
from vlkit.files import whole_file

# Words of questions, expressions and plain English, in addition to those of the captions.
COMMON = """
the of and to in is are was were be been it this that these those he she they we you his her their its our
for with as at by from on off over under into onto near next beside between behind front above below left
right top bottom upper lower middle centre center corner side edge first second third last leftmost
rightmost biggest smallest nearest what which who where when how why many much does do did has have there
here not no yes none any some all every each other another same different one two three four five six seven
eight nine ten number count colour color kind shape size pattern object objects thing things picture image
photo drawing scene video clip frame background night day room sky ground wall floor small tiny little large
big huge medium tall short wide striped stripes dotted dots spotted checked checkered plain solid bright
dark light pale deep crimson scarlet navy lime emerald violet magenta gold golden silver moves moving
appears appearing leaves leaving crosses crossing grows growing shrinks shrinking rotates rotating spins
spinning turns turning changes changing becomes flies falls rises jumps slides stays from towards across
through then while after before start end slowly quickly up down man woman person people boy girl dog cat
horse bird car bus train plane street road water lake beach grass field table plate food bowl snow city
building standing sitting riding holding playing looking walking running wearing eating
"""


@dataclass
class Config:
    """Make the vocabulary of the tiny bases."""

    output: Path
    """File to write (tokenizers' JSON)."""
    size: int = 2048
    """Number of tokens, special ones included."""
    captions: int = 30000
    """Pre-training captions to learn the merges from."""
    seed: int = 1
    """Seed of those captions."""


def corpus(config: Config) -> list[str]:
    """Captions of the pre-training domain and single words, each word often enough to become a token."""
    rng = np.random.default_rng(config.seed)
    texts = [caption(sample_scene(rng, "pretrain"), rng) for _ in range(config.captions)]
    names = [name for table in (FAMILIAR, SYNONYMS) for names in table.values() for name in names]
    for word in [*names, *COLOURS, *PLURALS.values(), *COMMON.split()]:
        texts += [f"a {word}"] * 40
    return texts


def main(config: Config) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # A space is prepended so that a word has the same token everywhere.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        special_tokens=["<pad>", "</s>", *(f"<extra_id_{i}>" for i in range(SENTINELS))],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(config), trainer)
    with whole_file(config.output) as path:
        tokenizer.save(str(path))
    print(f"{config.output}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    run(main, Config)
