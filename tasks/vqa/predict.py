"""Answer a single question, or every question of a split (which may have no answers), in the format of leaderboards.

python tasks/vqa/predict.py --model runs/vqa/… --data.root DIR --split test --json answers.json
python tasks/vqa/predict.py --model runs/vqa/… --image FILE --question "How many dogs are there?"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.files import write_json, write_text
from vlkit.tasks.load import load
from vlkit.tasks.vqa.evaluate import predict_records
from vlkit.tasks.vqa.task import TASK

KEYS = {"vqa": ("question_id", "answer"), "gqa": ("questionId", "prediction")}
"""Keys of a question and its answer in JSON; NLVR2 takes lines ``identifier,True`` instead."""


@dataclass
class Data:
    """Dataset to answer."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset."""
    style: Literal["drawn", "plain"] = "drawn"
    """Style of the demo dataset: plain drawings, known to the embedded bases, or hand-drawn ones, new to them."""


@dataclass
class Config:
    """Answer every question of a split, or a single one."""

    model: Path
    """Run or adapter folder."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to answer."""
    json: Path = Path("answers.json")
    """Write the answers to this file."""
    format: Literal["auto", "vqa", "gqa", "nlvr2"] = "auto"
    """Form of the file: JSON with question_id and answer (vqa) or questionId and prediction (gqa), or lines
    identifier,True (nlvr2); auto: from the dataset's name.
    """
    image: Path | None = None
    """Answer --question about this image instead."""
    image2: Path | None = None
    """The second image, for a model of pairs of images (NLVR2)."""
    question: str | None = None
    """Question about --image."""
    k: int = 5
    """Answers to show for --question."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""


def main(config: Config) -> None:
    if (config.image is None) != (config.question is None):
        missing = "--image FILE" if config.image is None else "--question TEXT"
        raise UserError(f"{missing} is missing: a single question needs both --image and --question")
    if config.image2 is not None and config.image is None:
        raise UserError("--image2: needs --image FILE, the first image of the pair")
    if config.image is not None:
        answer_one(config)
        return
    dataset = TASK.dataset(config.data.root, size=config.data.size, style=config.data.style)
    records = dataset.records(config.split)
    pipeline = load(config.model, config.device, task=TASK.name)
    answers = predict_records(pipeline.answerer, dataset, records, f"{config.split} questions")
    form = config.format
    if form == "auto":
        form = dataset.name if dataset.name in ("gqa", "nlvr2") else "vqa"
    if form == "nlvr2":
        write_text(config.json, "".join(f"{number},{answer == 'true'}\n" for number, answer in answers.items()))
    else:
        question_key, answer_key = KEYS[form]
        write_json(config.json, [{question_key: number, answer_key: answer} for number, answer in answers.items()])
    Console().print(f"{len(answers)} answers: {config.json}")


def answer_one(config: Config) -> None:
    """Print the best answers to one question."""
    pipeline = load(config.model, config.device, task=TASK.name)
    try:
        images = config.image if config.image2 is None else (config.image, config.image2)
        answers = pipeline.answer(images, config.question, config.k)
    except MediaError as error:
        raise UserError(f"--image {error}") from None
    console = Console()
    for answer, probability in answers:
        console.print(f"{probability:6.3f}  {answer}")


if __name__ == "__main__":
    run(main, Config)
