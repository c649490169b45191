"""Find moments in a video, write a summary of it, or answer a whole split in the form of a QVHighlights submission.

    python tasks/moment_retrieval/predict.py --model runs/moment_retrieval/… --video FILE --text "a dog jumps" --k 5
    python tasks/moment_retrieval/predict.py --model runs/moment_retrieval/… --video FILE --summary 20 --clip short.mp4
    python tasks/moment_retrieval/predict.py --model runs/moment_retrieval/… --data.root DIR --split test \
        --submission hl_test_submission.jsonl
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkit.adapters.adapter_files import AdapterFiles
from vlkit.cli.config import about, run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import sha256_of, text_lines, write_json, write_text
from vlkit.tasks.load import load
from vlkit.tasks.moment_retrieval.data import MomentExamples
from vlkit.tasks.moment_retrieval.evaluate import answers, submission
from vlkit.tasks.moment_retrieval.pipeline import ANYTHING, MomentPipeline, best_windows, clip_scores
from vlkit.tasks.moment_retrieval.summary import summary_of, write_summary
from vlkit.tasks.moment_retrieval.task import TASK


@dataclass
class Data:
    """Dataset for --split."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass
class Config:
    """Find moments in a video, write a summary of it, or answer a whole split."""

    model: Path
    """Run or adapter folder."""
    video: Path | None = None
    """Video file."""
    text: str | None = None
    """What to find in the video; a summary may do without."""
    k: int = 5
    """Most moments to show."""
    summary: float | None = None
    """Choose the most salient parts of the video, at most this many seconds together."""
    clip: Path | None = None
    """Write these parts to this MP4 file (without sound)."""
    split: str | None = None
    """Answer every query of this split instead."""
    submission: Path | None = None
    """Write the answers to the split to this JSONL file, one query a line."""
    data: Data = field(default_factory=Data)
    json: Path | None = None
    """Write what was found in the video to this file: moments, the saliency of each clip, and the summary."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""

    def __post_init__(self) -> None:
        if (self.video is None) == (self.split is None):
            raise UserError("give either --video FILE, or --split NAME with --submission FILE")
        if self.split is not None and self.submission is None:
            raise UserError("--split: give --submission FILE, where the answers go")
        if self.split is None and self.submission is not None:
            raise UserError("--submission: belongs to --split NAME")
        if self.video is not None and self.text is None and self.summary is None:
            raise UserError('give --text "…", or --summary SECONDS')
        if self.clip is not None and self.summary is None:
            raise UserError("--clip: belongs to --summary SECONDS")
        if self.text is not None and not self.text.strip():
            raise UserError("--text: is empty; say what to find")
        if self.k < 1:
            raise UserError(f"--k {self.k}: must be at least 1")


def main(config: Config) -> None:
    pipeline = load(config.model, config.device, task=TASK.name)
    if config.split is not None:
        whole_split(pipeline, config)
        return
    found = one_video(pipeline, config)
    if config.json:
        write_json(config.json, found)


def one_video(pipeline: MomentPipeline, config: Config) -> dict[str, Any]:
    """Print the moments of a query, and the summary; returns what was found."""
    console, text = Console(), config.text or ANYTHING
    with about("--video"):
        (answer,) = pipeline.answer(config.video, [text])
    result: dict[str, Any] = {"video": str(config.video), "text": config.text, "duration": answer.timeline.duration}
    result["saliency"] = [{"start": s, "end": e, "score": v} for s, e, v in clip_scores(answer)]
    if config.text is not None and len(answer.windows):
        best = best_windows(answer, config.k)
        result["moments"] = [{"start": start, "end": end, "score": score} for start, end, score in best]
        table = Table("score", "start", "end", title=f"{config.text} ({config.video.name})")
        for start, end, score in best:
            table.add_row(f"{score:.3f}", f"{start:.1f} s", f"{end:.1f} s")
        console.print(table)
    if config.summary is not None:
        with about("--summary"):
            parts = summary_of(answer, config.summary)
        result["summary"] = [{"start": start, "end": end} for start, end in parts]
        console.print("summary: " + ", ".join(f"{start:.1f}-{end:.1f} s" for start, end in parts))
        if config.clip:
            write_summary(config.video, parts, config.clip)
            console.print(f"written: {config.clip}")
    return result


def whole_split(pipeline: MomentPipeline, config: Config) -> None:
    """Write the submission of a split; windows are ranked best first.

    Answers are collected in ``FILE.part``: after an interruption the same command goes on where it stopped.
    """
    dataset = TASK.dataset(config.data.root)
    examples = MomentExamples(dataset, config.split, pipeline.reader)
    part = config.submission.with_name(config.submission.name + ".part")
    weights = sha256_of(AdapterFiles.find(config.model).tensors)
    key = {"model": weights, "split": sha256_of(dataset.split_file(config.split))}
    done = read_part(part, key)
    if done:
        Console(stderr=True).print(f"{len(done)} answers are in {part} already")
    kept = [json.dumps(key), *(json.dumps([row, answer]) for row, answer in done.items())]
    write_text(part, "".join(line + "\n" for line in kept))  # without a last line that was cut
    with open(part, "a", encoding="utf-8") as file:
        rows = [row for row in range(len(examples)) if row not in done]
        for row, found in answers(pipeline.finder, examples, rows=rows):
            done[row] = submission(examples.records[row], found)
            file.write(json.dumps([row, done[row]]) + "\n")
            file.flush()
    write_text(config.submission, "".join(json.dumps(done[row]) + "\n" for row in range(len(examples))))
    part.unlink()
    Console().print(f"{len(done)} queries of {dataset.name}/{config.split}: {config.submission}")


def read_part(path: Path, key: dict[str, str]) -> dict[int, dict[str, Any]]:
    """Answers that an interrupted command left; none if it had another model or split. A cut last line is ignored."""
    if not path.exists():
        return {}
    lines = text_lines(path.read_text(encoding="utf-8"))
    found: dict[int, dict[str, Any]] = {}
    with contextlib.suppress(ValueError):
        if lines and json.loads(lines[0]) == key:
            for line in lines[1:]:
                row, answer = json.loads(line)
                found[row] = answer
    return found


if __name__ == "__main__":
    run(main, Config)
