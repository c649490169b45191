"""Load text bases (text encoders of transformers) by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import nn

from vlkit.encoders.bases import TextBase, text_base
from vlkit.encoders.families import family_kinds, family_of_kind
from vlkit.encoders.hub import hub_access, quiet
from vlkit.encoders.stored_layers import store_towers
from vlkit.encoders.stored_weights import named_format
from vlkit.encoders.tokenizer import has_tokenizer
from vlkit.encoders.weights import first_line
from vlkit.errors import UserError, some


def load_text_base(name: str, tokenizer: str | Path | None = None) -> TextBase:
    """Load a model of one of the transformers :data:`vlkit.encoders.families.FAMILIES`.

    Args:
        name: ``tiny`` (embedded T5), a name on the hub, or a folder written by ``save_pretrained`` with its tokenizer.
        tokenizer: folder with the tokenizer files, if they are not in the model's folder.

    ``NAME@int8`` and the like store the weights in fewer bytes (:mod:`vlkit.encoders.stored_weights`).

    Raises:
        UserError: the model or tokenizer cannot be loaded, or its family cannot be staged.
    """
    bare, number_format = named_format(name)
    base = _load(bare, tokenizer)
    base.name = name
    towers: dict[str, nn.Module] = {"encoder": base.encoder}
    if base.decoder is not None:
        towers["decoder"] = base.decoder
    store_towers(towers, base.identity, number_format)
    return base


def _load(name: str, tokenizer: str | Path | None) -> TextBase:
    if name == "tiny":
        from vlkit.encoders.tiny import load_tiny_t5

        return load_tiny_t5()
    from transformers import AutoConfig, AutoTokenizer

    try:
        with quiet() if Path(name).is_dir() else hub_access():
            config = AutoConfig.from_pretrained(name)
            kind = _text_model_class(name, config)
            if tokenizer is None and Path(name).is_dir() and not has_tokenizer(Path(name)):
                # transformers would silently create a tokenizer without a vocabulary.
                raise UserError(f"text base {name!r}: no tokenizer files; save its tokenizer to the same folder")
            model, info = cast(Any, kind).from_pretrained(name, output_loading_info=True)
            words = AutoTokenizer.from_pretrained(str(tokenizer or name))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"text base {name!r}: cannot be loaded ({first_line(error)}); give the name of a text encoder on the hub, "
            "or a folder with config.json, model.safetensors and tokenizer files"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise UserError(f"text base {name!r}: its weights lack {some(missing, 3)}; give a complete checkpoint")
    return text_base(model, name, words, {"library": "transformers", "name": name, "weights": name})


def _text_model_class(name: str, config: Any) -> type[nn.Module]:
    import transformers

    family = family_of_kind(config.model_type)
    if family is None:
        raise UserError(
            f"text base {name!r}: family {config.model_type!r} cannot be staged; these can: {family_kinds()}"
        )
    encoder_only = any("EncoderModel" in architecture for architecture in config.architectures or ())
    return getattr(transformers, family.model if encoder_only or not family.generator else family.generator)
