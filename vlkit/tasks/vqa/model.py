"""Visual question answering: the model, and what its adapter folder says about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from vlkit.adapters.sherl.t5 import SherlT5Decoder, SherlT5Encoder
from vlkit.adapters.sherl.tokens import SherlOptions
from vlkit.adapters.tuning import TunedEncoder
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.errors import UserError
from vlkit.tasks.fusion import Fusion, FusionOptions
from vlkit.tasks.vqa.heads import VQA_HEADS, AnswerClassifier, AnswerGenerator, ClassifyOptions, GenerateOptions

Model = AnswerClassifier | AnswerGenerator


HeadOptions = ClassifyOptions | GenerateOptions


def build_model(
    base: ClipBase, text: TextSide, adapter: Any, head: HeadOptions, fusion: FusionOptions, answers: int
) -> Model:
    """Put the same adaptation method on both towers, and fusion and answer head behind them.

    Args:
        base: the loaded base; its vision tower becomes part of the model.
        text: what reads the questions; its towers become part of the model.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: options of one of :data:`vlkit.tasks.vqa.heads.VQA_HEADS`.
        fusion: options of the fusion.
        answers: size of the vocabulary; of no meaning to a head that writes.

    Raises:
        UserError: the method does not fit a tower or the head.
    """
    image = None if head.blind else adapter.build(base.image, "tokens")
    if isinstance(head, ClassifyOptions):
        encoder = adapter.build(text.encoder, "tokens")
        return AnswerClassifier(image, encoder, Fusion(base.image, text.encoder, fusion), answers, head.dropout)
    encoder, decoder = _encoder_decoder(text, adapter)
    return AnswerGenerator(image, encoder, decoder, Fusion(base.image, text.encoder, fusion, head.queries))


def _encoder_decoder(text: TextSide, adapter: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Both stacks of a T5 with the method on them."""
    if text.base is None or text.base.decoder is None:
        raise UserError(f"--head.kind generate: --text_base {text.name} has no decoder; give a T5, or classify")
    if isinstance(adapter, SherlOptions):
        for name in ("late", "taps", "dropout"):
            if getattr(adapter, name) is not None:
                raise UserError(f"--adapter.{name}: SHERL on a decoder is as published (flavour t5); leave it out")
        reduction = 4 if adapter.reduction is None else adapter.reduction
        encoder = SherlT5Encoder(text.base.encoder, reduction=reduction, init=adapter.init)
        return encoder, SherlT5Decoder(text.base.decoder, reduction=reduction, init=adapter.init)
    encoder, decoder = (adapter.build(tower, "tokens") for tower in (text.base.encoder, text.base.decoder))
    if not isinstance(decoder, TunedEncoder):
        mend = "use sherl, lora or full, or --head.kind classify"
        raise UserError(f"--adapter.kind {adapter.kind}: the decoder would not see what the fusion found; {mend}")
    return encoder, decoder


def identity_of(base: ClipBase, text: TextSide, head: HeadOptions) -> dict[str, dict[str, Any]]:
    """Who the towers of a model are: ``image``, ``text`` and, where the head writes, ``decoder``."""
    towers = {name: who for name, who in text.identity.items() if name == "text" or isinstance(head, GenerateOptions)}
    return {"image": {**base.identity["image"], "load": base.name}, **towers}


def adapter_config(
    base: ClipBase,
    text: TextSide,
    adapter: Any,
    head: HeadOptions,
    fusion: FusionOptions,
    vocabulary: list[str],
    metrics: dict[str, float],
) -> dict[str, Any]:
    """What ``adapter_config.json`` says: everything needed to build this model again on the same bases."""
    return {
        "task": "vqa",
        "base": identity_of(base, text, head),
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": {**asdict(head), "fusion": asdict(fusion), "answers": vocabulary},
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
    }


def head_options(values: dict[str, Any]) -> tuple[HeadOptions, FusionOptions, list[str]]:
    """Options of head and fusion, and the vocabulary, from the ``head`` of an adapter's config.

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    given = dict(values)
    try:
        fusion, vocabulary = FusionOptions(**given.pop("fusion")), given.pop("answers")
        return VQA_HEADS[given["kind"]](**given), fusion, vocabulary
    except (KeyError, TypeError) as error:
        raise UserError(f"adapter_config.json: the options of 'head' do not fit ({error}); update vlkit") from None
