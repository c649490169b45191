"""Adapted towers as ONNX models, in the folder layout that immich reads.

    OUTPUT/config.json                  embed_dim, image_size and context_length, named as in open_clip
    OUTPUT/visual/model.onnx            "image" float32 [B, 3, H, W] -> "embedding" float32 [B, E], unit norm
    OUTPUT/visual/preprocess_cfg.json   size, mean, std, interpolation, resize_mode
    OUTPUT/textual/model.onnx           "text" int32 [B, L] -> "embedding" float32 [B, E], unit norm
    OUTPUT/textual/tokenizer.json, tokenizer_config.json

Right after writing, both models run in onnxruntime, the text model on ids of the written ``tokenizer.json``, and are
compared with the adapter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import get_clean_fn
from torch import Tensor, nn

from vlkit.encoders.bases import ClipBase
from vlkit.encoders.tokenizer_files import as_transformers, clean_of
from vlkit.errors import UserError, needs
from vlkit.export.merge import merge_
from vlkit.export.source import Source, new_folder
from vlkit.files import write_json

MODEL, OPSET = "model.onnx", 17
LARGEST_DIFFERENCE = 1e-4
"""An export whose embeddings differ by more from the adapter's is not written."""
PROBES = ["a photo of a dog", "Two people, one red car", "a"]


class Side(nn.Module):
    """One tower with its head as a module with one input."""

    def __init__(self, embed: Callable[[Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.embed, self.parts = embed, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] float32, or ids [B, L] int32 -> [B, E] float32, unit norm."""
        return self.embed(x if x.is_floating_point() else x.long())


@torch.no_grad()
def export_onnx(source: Source, output: Path) -> dict[str, float]:
    """Write an adapter as ONNX models and check them.

    Args:
        source: the adapter; methods of peft are merged into its base.
        output: new folder.

    Returns:
        ``visual`` and ``textual``: the largest difference of a value of an embedding.

    Raises:
        UserError: onnx or onnxruntime is missing, a tower cannot be traced, or a model differs from the adapter.
    """
    _runtime()
    base, model = source.base, source.model
    height, width = base.preprocess.size
    tokenizer, length = as_transformers(base.tokenize), base.tokenize(["a"]).shape[1]
    with new_folder(output) as folder:
        for name in ("visual", "textual"):
            (folder / name).mkdir()
        write_json(folder / "config.json", _config(base, model.out_dim, length))
        write_json(folder / "visual" / "preprocess_cfg.json", {"mode": "RGB", **base.preprocess.to_dict()})
        tokenizer.save_pretrained(folder / "textual")
        images = torch.randn(len(PROBES), 3, height, width, generator=torch.Generator().manual_seed(0))
        # The adapter reads ids of its own tokenizer, so that the check covers the written one too.
        expected = {"visual": model.embed_images(images), "textual": model.embed_texts(base.tokenize(PROBES))}
        file = folder / "textual" / "tokenizer.json"
        ids = _ids_of_file(file, str(tokenizer.pad_token), length, clean_of(base.tokenize))
        merge_(model)  # in each forward peft merges an attention's weights and splits them, which cannot be traced
        write_model(Side(model.embed_images, model.image, model.image_head), "image", images, folder / "visual")
        write_model(Side(model.embed_texts, model.text, model.text_head), "text", ids, folder / "textual")
        found = {
            name: _difference(folder / name, x, expected[name]) for name, x in (("visual", images), ("textual", ids))
        }
        for name, difference in found.items():
            if not difference <= LARGEST_DIFFERENCE:
                raise UserError(
                    f"{output}: the {name} model differs from the adapter by {difference:.1e}, more than "
                    f"{LARGEST_DIFFERENCE:.0e}; nothing was written. Please report the base and the method"
                )
    return found


def _difference(folder: Path, inputs: Tensor, expected: Tensor) -> float:
    """Largest difference of a value between the model in a folder and ``expected`` [n, E], in two sizes of batch."""
    session = _runtime().InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
    key = session.get_inputs()[0].name
    found = [torch.from_numpy(session.run(None, {key: inputs[:n].numpy()})[0]) - expected[:n] for n in (1, len(inputs))]
    return max(float(values.abs().max()) for values in found)


def write_model(side: nn.Module, name: str, example: Tensor, folder: Path) -> None:
    """Trace a module with one input and write it with a batch of any size.

    Args:
        side: maps a tensor to [B, E].
        name: name of the input; the output is "embedding".
        example: an input with more than one sample.
        folder: where to write it.

    Raises:
        UserError: an operation has no form in ONNX.
    """
    batch = {name: {0: "batch"}, "embedding": {0: "batch"}}
    names: dict[str, Any] = {"input_names": [name], "output_names": ["embedding"], "dynamic_axes": batch}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The exporter on torch.export takes ten times as long and cannot inline the early route's no_grad.
            torch.onnx.export(side.eval(), (example,), str(folder / MODEL), opset_version=OPSET, dynamo=False, **names)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder.name}: this tower cannot be written as ONNX ({reason})") from error


def _runtime() -> Any:
    with needs("export", "--to onnx"):
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    return onnxruntime


def _config(base: ClipBase, dim: int, length: int) -> dict[str, Any]:
    text: dict[str, Any] = {"context_length": length}
    clean = clean_of(base.tokenize)
    if clean is not None:
        text["tokenizer_kwargs"] = {"clean": clean}
    return {"embed_dim": dim, "vision_cfg": {"image_size": base.preprocess.size[0]}, "text_cfg": text}


def _ids_of_file(file: Path, pad_token: str, length: int, clean: str | None) -> Tensor:
    """Ids [n, length] int32 of the probes by a ``tokenizer.json``, as immich reads it: texts are cleaned first."""
    from tokenizers import Tokenizer

    if not file.is_file():
        raise UserError(f"{file.name}: this base's tokenizer has no such form; choose another base")
    words = Tokenizer.from_file(str(file))
    words.enable_padding(length=length, pad_token=pad_token, pad_id=words.token_to_id(pad_token))
    words.enable_truncation(max_length=length)
    texts = PROBES if clean is None else [get_clean_fn(clean)(text) for text in PROBES]
    return torch.tensor([words.encode(text).ids for text in texts], dtype=torch.int32)
