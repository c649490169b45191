"""Folders in the official form of GLUE, with its traps: quotes, odd line ends, short lines, hidden or unsure labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

ODD = ('he said "no', "caf\u00e9 \u2014 d\u00e9j\u00e0 vu", "two\u2028lines", "it 's , well")
"""Sentences with what a careless reader trips over: an open quotation mark, other scripts, a Unicode line end."""


def sentence(number: int) -> str:
    return f"{ODD[number % len(ODD)]} {number}"


def write_tsv(path: Path, rows: Iterable[Iterable[object]], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join("\t".join(map(str, row)) + end for row in rows).encode())


def write_glue(root: Path) -> Path:
    """All nine tasks, 30 training rows and 11 of each other file; returns ``root``."""
    sizes = {"train": 30, "dev": 11, "test": 5}
    for file, count in sizes.items():
        rows = range(count)
        hidden = file == "test"
        pairs = [(sentence(i), sentence(i + 1)) for i in rows]
        cola = [("gj04", i % 2, "" if i % 2 else "*", sentence(i)) for i in rows]
        write_tsv(root / f"CoLA/{file}.tsv", _numbered("sentence", rows) if hidden else cola)
        sst2 = [("sentence", "label"), *((sentence(i), i % 2) for i in rows)]
        write_tsv(root / f"SST-2/{file}.tsv", _numbered("sentence", rows) if hidden else sst2, end="\r\n")
        mrpc = ("#1 ID", "#2 ID", "#1 String", "#2 String")
        head = (("index" if hidden else "\ufeffQuality"), *mrpc)
        write_tsv(root / f"MRPC/{file}.tsv", [head, *((i % 2, 7, 8, *pairs[i]) for i in rows)])
        stsb = ("index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2")
        score = [] if hidden else ["score"]
        scored = [[i, *"abcdef", *pairs[i], *([] if hidden else [f"{i % 6 * 0.85:.3f}"])] for i in rows]
        write_tsv(root / f"STS-B/{file}.tsv", [[*stsb, *score], *scored])
        qqp = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
        if hidden:
            write_tsv(root / f"QQP/{file}.tsv", [("id", *qqp[3:5]), *((i, *pairs[i]) for i in rows)])
        else:
            full = [(i, 1, 2, *pairs[i], i % 2) for i in rows]
            write_tsv(root / f"QQP/{file}.tsv", [qqp, *full[:3], ("9", "1", "2"), *full[3:]])
        for folder, names, labels in (
            ("QNLI", ("question", "sentence"), ("entailment", "not_entailment")),
            ("RTE", ("sentence1", "sentence2"), ("entailment", "not_entailment")),
            ("WNLI", ("sentence1", "sentence2"), ("0", "1")),
        ):
            label = [] if hidden else ["label"]
            lines = [[i, *pairs[i], *([] if hidden else [labels[i % 2]])] for i in rows]
            write_tsv(root / f"{folder}/{file}.tsv", [["index", *names, *label], *lines])
        _mnli(root / "MNLI", file, pairs)
    return root


def _numbered(name: str, rows: Iterable[int]) -> list[tuple[object, object]]:
    return [("index", name), *((i, sentence(i)) for i in rows)]


def _mnli(folder: Path, file: str, pairs: list[tuple[str, str]]) -> None:
    head = ["index", "promptID", "pairID", "genre", *(f"{s}_{p}" for p in ("b", "p") for s in ("s1", "s2"))]
    head += ["sentence1", "sentence2"]
    extra = {"train": ["label1"], "dev": [f"label{i}" for i in range(1, 6)], "test": []}[file]
    golds = ("entailment", "neutral", "contradiction", "-")  # "-" only in the raw release
    gold = [] if file == "test" else ["gold_label"]
    rows = [
        [i, *"abcdefg", *pair, *("x" for _ in extra), *([golds[i % 4]] if gold else [])] for i, pair in enumerate(pairs)
    ]
    names = [file] if file == "train" else [f"{file}_matched", f"{file}_mismatched"]
    for name in names:
        write_tsv(folder / f"{name}.tsv", [[*head, *extra, *gold], *rows])
