"""QVHighlights: ``highlight_{train,val,test}_release.jsonl``. The official test file has no labels."""

from __future__ import annotations

from pathlib import Path

from vlkit.data.sources.clip_files import other_clips
from vlkit.data.sources.moment_lines import SPLITS, add_lines, find_files
from vlkit.data.sources.prepare import Source

NAMES = {split: (f"highlight_{split}_release.jsonl", f"{split}.jsonl") for split in SPLITS}
SETTINGS = {"fps": 0.5, "unit": 2.0, "nms": "hard"}
"""Clips per second, rounding of predicted windows in seconds, and suppression, as published."""
FOLDERS = ("videos", "clips", "qvhilights_videos")


def read(annotations: str | Path) -> Source:
    """Read the folder with the files; splits whose file is missing are left out.

    Raises:
        UserError: no file is there, or a line is wrong; the message names file and line.
    """
    folder = Path(annotations)
    files = find_files(folder, NAMES, "highlight_train_release.jsonl, highlight_val_release.jsonl")
    inputs = {"annotations": str(folder.resolve()), **SETTINGS}
    source = Source("qvhighlights", "moment_retrieval", {}, inputs, elsewhere=other_clips(FOLDERS))
    for split, path in files.items():
        add_lines(source, split, path)
    return source
