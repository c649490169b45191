"""Write a saved retrieval adapter in the format of another library.

    python tasks/export.py --model runs/retrieval/… --to onnx --output exported

onnx: both adapted towers, in the folder layout that immich reads, checked with onnxruntime. sentence-transformers: a
folder for ``SentenceTransformer(folder, trust_remote_code=True)``. open_clip: the base with the adapter merged into its
weights, for methods that leave nothing beside it. peft: LoRA as peft itself writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.export.onnx import export_onnx
from vlkit.export.open_clip import export_open_clip
from vlkit.export.peft import export_peft
from vlkit.export.sentence_transformers import export_sentence_transformers
from vlkit.export.source import open_source
from vlkit.tasks.after_training import Mixed

Format = Literal["onnx", "sentence-transformers", "open_clip", "peft"]


@dataclass(kw_only=True)
class Config(Mixed):
    """Write a saved retrieval adapter in the format of another library."""

    model: str
    """Run or adapter folder, or an adapter on the Hugging Face hub (org/name)."""
    output: Path
    """Folder to write; it must not exist yet."""
    to: Format
    """Format. onnx: both adapted towers, in the layout of immich; sentence-transformers: a folder for its
    SentenceTransformer; open_clip: the base with the adapter merged in (linear, bitfit, lora, full); peft: a folder
    for its PeftModel (lora)."""


def main(config: Config) -> None:
    source, console = open_source(config.model, config.mix, config.mix_beta), Console()
    writers = {
        "sentence-transformers": export_sentence_transformers,
        "open_clip": export_open_clip,
        "peft": export_peft,
    }
    if config.to == "onnx":
        found = {f"{name}/model.onnx": value for name, value in export_onnx(source, config.output).items()}
    else:
        found = {config.to: writers[config.to](source, config.output)}
    for name, difference in found.items():
        console.print(f"{name}: largest difference from the adapter's embeddings {difference:.1e}")
    console.print(f"written to {config.output}")


if __name__ == "__main__":
    run(main, Config)
