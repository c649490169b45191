"""LoRA as a folder of peft: ``peft.PeftModel.from_pretrained(model, OUTPUT)``.

    OUTPUT/adapter_config.json, adapter_model.safetensors   as peft names them
    OUTPUT/heads.safetensors                                projections of the heads and the temperature

``model`` is the library's whole model: that of ``open_clip.create_model``, ``CLIPModel`` or ``SiglipModel``. peft has
no place for the heads, so their tensors lie beside.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlkit.adapters.projections import SplitAttention, SplitLinear
from vlkit.adapters.tuning import LoraOptions
from vlkit.encoders.load import build_random, load_base
from vlkit.encoders.load_contrastive import SCHEME, library_model
from vlkit.encoders.stored_weights import stored_format
from vlkit.errors import UserError
from vlkit.export.source import Source, new_folder, open_source

FOLDER = "peft"
"""Where training puts it in the adapter folder."""
MODEL, HEADS = "adapter_model.safetensors", "heads.safetensors"
LARGEST_DIFFERENCE = 1e-4


class Whole(NamedTuple):
    """The library's model with both towers, and where they lie in it.

    Attributes:
        model: the model with the base's weights.
        image, text: prefixes of the names of the towers' parts.
        images, texts: names of the methods that embed images and ids.
    """

    model: nn.Module
    image: str
    text: str
    images: str
    texts: str


def add_peft_folder(folder: Path, options: Any) -> Path | None:
    """Write a trained LoRA a second time, for peft: as ``peft/`` in its adapter folder; an older one is replaced.

    Args:
        folder: a finished adapter folder.
        options: the method and its options.

    Returns:
        The new folder; None if the method is another one or :func:`export_peft` refuses.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    if not isinstance(options, LoraOptions):
        return None
    try:
        export_peft(open_source(folder), folder / FOLDER)
    except UserError:  # a second form for other libraries; the run itself is complete
        return None
    return folder / FOLDER


@torch.no_grad()
def export_peft(source: Source, output: Path) -> float:
    """Write LoRA as peft does, load it with peft into the library's model, and compare.

    Args:
        source: the adapter.
        output: new folder.

    Returns:
        The largest difference of a value of an embedding, heads applied.

    Raises:
        UserError: the method is not LoRA, its maps do not exist in the library's model, the base has no model with both
            towers, or the embeddings differ.
    """
    options, model, base = source.options, source.model, source.base
    if not isinstance(options, LoraOptions):
        raise UserError(f"--to peft: {options.kind} is not a method of peft that can be written alone; train lora")
    if source.head.pool != "base":
        raise UserError(f"--to peft: the heads pool by {source.head.pool}; train with --head.pool base")
    if any(isinstance(module, SplitAttention | SplitLinear) for module in model.modules()):
        raise UserError(
            "--to peft: with --adapter.targets attention or qv (or freeze_a) the updates are on query, key and value, "
            "which are one parameter in the library's model; use --to open_clip"
        )
    stored = stored_format(base.image)
    if stored != "fp32":
        raise UserError(
            f"--to peft: the update was trained on weights stored as {stored}; train with base weights fp32"
        )
    whole = _whole(source)
    tensors: dict[str, Tensor] = {}
    targets: list[str] = []
    adapted: Any = model
    for prefix, encoder in ((whole.image, adapted.image), (whole.text, adapted.text)):
        tower = encoder.base.model
        found = {name: value for name, value in tower.state_dict().items() if ".lora_" in name}
        tensors |= {f"base_model.model.{prefix}{name.replace('.default', '')}": value for name, value in found.items()}
        targets += dict.fromkeys(prefix + name.partition(".lora_")[0] for name in found)
    from peft import LoraConfig, PeftModel

    place = base.identity["image"]["name"].removeprefix(SCHEME)
    # The output projection of torch's attention is updated along with the attention.
    targets = [name for name in targets if not name.endswith(".base_layer.out_proj")]
    config = LoraConfig(
        base_model_name_or_path=place,
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=targets,
        inference_mode=True,
    )
    with new_folder(output) as folder:
        config.save_pretrained(str(folder))
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / MODEL)
        heads = _heads(source)
        save_file(heads, folder / HEADS)
        loaded: Any = PeftModel.from_pretrained(whole.model, str(folder)).eval()
        ids = base.tokenize(["a photo of a dog", "a"])
        pixels = torch.randn(2, 3, *base.preprocess.size, generator=torch.Generator().manual_seed(0))
        difference = 0.0
        for name, method, x, expected in (
            ("image", whole.images, pixels, model.embed_images(pixels)),
            ("text", whole.texts, ids, model.embed_texts(ids)),
        ):
            vectors = getattr(loaded, method)(x)
            vectors = getattr(vectors, "pooler_output", vectors)
            if f"{name}_projection" in heads:
                vectors = vectors @ heads[f"{name}_projection"].T
            difference = max(difference, float((normalize(vectors, dim=-1) - expected).abs().max()))
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{output}: peft's embeddings differ from the adapter's by {difference:.1e}; nothing written"
            )
    return difference


def _heads(source: Source) -> dict[str, Tensor]:
    """``image_projection`` and ``text_projection`` [E, E] (if there are any), ``logit_scale`` and ``logit_bias``."""
    model = source.model
    found = {"logit_scale": model.logit_scale.data, "logit_bias": model.logit_bias.data}
    for name, head in (("image", model.image_head), ("text", model.text_head)):
        if isinstance(head.projection, nn.Linear):
            found[f"{name}_projection"] = head.projection.weight.data
    return found


def _whole(source: Source) -> Whole:
    identity = source.base.identity
    library, arch = identity["image"]["library"], identity["image"]["name"]
    if "context_length" in identity["text"]:
        raise UserError("--to peft: with --context_length the text tower differs from the library's; use --to onnx")
    if library == "transformers" and source.base.name.startswith(SCHEME):
        model = library_model(source.base.name)
        apart = not hasattr(model, "visual_projection")  # SigLIP's towers hold their heads themselves
        prefixes = ("vision_model.", "text_model.") if apart else ("", "")
        return Whole(model, *prefixes, "get_image_features", "get_text_features")
    if library != "open_clip" or arch not in open_clip.list_models():
        raise UserError(f"--to peft: base {source.base.name} has no model of its library with both towers")
    fresh = load_base(source.base.name)  # LoRA has changed the modules of the one at hand
    quick_gelu = any(isinstance(module, QuickGELU) for module in fresh.image.modules())
    model: Any = build_random(arch, source.base.preprocess.size[0], {"quick_gelu": quick_gelu})
    inside = "text." if hasattr(model, "text") else ""
    state = {f"visual.{name}": value for name, value in fresh.image.model.state_dict().items()}
    state |= {f"{inside}{name}": value for name, value in fresh.text.model.state_dict().items()}
    model.load_state_dict(state, strict=False)
    return Whole(model.eval(), "visual.", inside, "encode_image", "encode_text")
