"""sentence-transformers: its trainer with in-batch negatives on a CLIP, all weights or LoRA (peft)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, cast

from datasets import Dataset, Image
from job import Job
from peft import LoraConfig, inject_adapter_in_model
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

ATTENTION_AND_MLP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


class Ticks(TrainerCallback):
    """Calls a function after each optimizer step."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tick()


def main() -> None:
    job = Job.from_arguments()
    model = SentenceTransformer(str(job.base), device=str(job.device))
    if job.method == "LoRA":
        # What model.add_adapter does, without its check for a release of peft that may not be out yet.
        config = LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION_AND_MLP)
        inject_adapter_in_model(config, cast(Any, model.transformers_model))
    images, captions = zip(*job.pairs(), strict=True)
    rows = {"image": [str(path) for path in images], "caption": list(captions)}
    dataset = Dataset.from_dict(rows).cast_column("image", Image())

    def loop(steps: int, tick: Callable[[], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=job.batch_size,
                learning_rate=1e-5,
                max_grad_norm=0.0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=job.device.type == "cpu",
                bf16=job.device.type == "cuda",
            )
            loss = MultipleNegativesRankingLoss(model)
            trainer: Any = SentenceTransformerTrainer(
                model, arguments, train_dataset=dataset, loss=loss, callbacks=[Ticks(tick)]
            )
            trainer.train()
            model.zero_grad(set_to_none=True)

    job.measure(model, loop)


if __name__ == "__main__":
    main()
