"""A contact sheet of the demo world."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlkit.drawn.captions import caption
from vlkit.drawn.draw import draw
from vlkit.drawn.graph import Domain
from vlkit.drawn.scenes import sample_scene
from vlkit.files import whole_file

TILE, TEXT, GAP, COLUMNS, FONT = 192, 74, 8, 6, 11
DOMAIN_NUMBERS: dict[Domain, int] = {"pretrain": 0, "demo": 1}


def contact_sheet(seed: int, each: int = 12) -> Image.Image:
    """``each`` scenes of either domain, a caption below each: pre-training domain above, demo domain below."""
    rows = -(-each // COLUMNS)
    font = ImageFont.load_default(size=FONT)
    size = (COLUMNS * (TILE + GAP) + GAP, 2 * rows * (TILE + TEXT + GAP) + GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for domain, number in DOMAIN_NUMBERS.items():
        for index in range(each):
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, index])))
            scene = sample_scene(rng, domain)
            x = GAP + index % COLUMNS * (TILE + GAP)
            y = GAP + (number * rows + index // COLUMNS) * (TILE + TEXT + GAP)
            sheet.paste(draw(scene, TILE), (x, y))
            text = "\n".join(textwrap.wrap(caption(scene, rng), 34))
            pen.multiline_text((x, y + TILE + 3), text, fill=(20, 20, 20), font=font, spacing=2)
    return sheet


def write_contact_sheet(path: str | Path, seed: int) -> None:
    """Write :func:`contact_sheet` as a PNG."""
    with whole_file(path) as temporary:
        contact_sheet(seed).save(temporary, format="PNG")
