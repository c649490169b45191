"""Visual question answering: the model, and its entry in the adapter config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from vlkit.adapters.facts import MethodOptions
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.errors import UserError
from vlkit.tasks.fusion import Fusion, FusionOptions
from vlkit.tasks.generation import ImageWriter, image_side
from vlkit.tasks.visual_embedding import VisualEmbedding
from vlkit.tasks.vqa.heads import VQA_HEADS, AnswerClassifier, AnswerGenerator, ClassifyOptions, GenerateOptions

Model = AnswerClassifier | AnswerGenerator | ImageWriter

HeadOptions = ClassifyOptions | GenerateOptions


def with_defaults_of(head: HeadOptions, adapter: MethodOptions) -> MethodOptions:
    """The options of a new model's method: a classifier fuses cells and words, a writer has stacks of its own.

    An adapter folder records them, so that a folder from before keeps the options that it was trained with.
    """
    return adapter.for_answers() if isinstance(head, ClassifyOptions) else adapter


def build_model(
    base: ClipBase,
    text: TextSide,
    adapter: MethodOptions,
    head: HeadOptions,
    fusion: FusionOptions,
    answers: int,
    images: int = 1,
) -> Model:
    """Apply the same adaptation method to both towers, and add fusion and answer head. The image tower of a writer is
    that of :func:`vlkit.tasks.generation.image_side`.

    Args:
        base: the loaded base; its vision tower becomes part of the model.
        text: the side that reads questions; its towers become part of the model.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: options of one of :data:`vlkit.tasks.vqa.heads.VQA_HEADS`.
        fusion: options of the fusion.
        answers: size of the vocabulary; ignored by a generating head.
        images: images that a question is about.

    Raises:
        UserError: the method does not fit a tower or the head.
    """
    tower = adapter if isinstance(head, ClassifyOptions) else image_side(adapter)
    image = None if head.blind else tower.build(base.image, "tokens")
    fusion = fusion.beside(adapter)
    if isinstance(head, ClassifyOptions):
        encoder = adapter.build(text.encoder, "tokens")
        fused = Fusion(base.image, text.encoder, fusion)
        return AnswerClassifier(image, encoder, fused, answers, head.dropout, images)
    if text.base is None or text.base.decoder is None:
        raise UserError(f"--head.kind generate: --text_base {text.name} has no decoder; give a T5, or classify")
    encoder, decoder = adapter.build_stacks(text.base.encoder, text.base.decoder)
    if adapter.joint_side_network:
        width = text.base.encoder.token_dim
        return ImageWriter(image, encoder, decoder, VisualEmbedding(base.image.token_dim, width, head.cells), images)
    return AnswerGenerator(image, encoder, decoder, Fusion(base.image, text.encoder, fusion, head.queries), images)


def identity_of(base: ClipBase, text: TextSide, head: HeadOptions) -> dict[str, dict[str, Any]]:
    """Identity of a model's towers: ``image``, ``text`` and, for a generating head, ``decoder``."""
    towers = {name: who for name, who in text.identity.items() if name == "text" or isinstance(head, GenerateOptions)}
    return {"image": {**base.identity["image"], "load": base.name}, **towers}


def adapter_config(
    base: ClipBase,
    text: TextSide,
    adapter: MethodOptions,
    head: HeadOptions,
    fusion: FusionOptions,
    vocabulary: list[str],
    metrics: dict[str, float],
    images: int = 1,
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same bases."""
    return {
        "task": "vqa",
        "base": identity_of(base, text, head),
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": {
            **asdict(head),
            "fusion": asdict(fusion),
            "answers": vocabulary,
            **({"images": images} if images > 1 else {}),
        },
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
    }


class Head(NamedTuple):
    """What an adapter's config says of its head."""

    options: HeadOptions
    fusion: FusionOptions
    answers: list[str]
    images: int
    """Images that a question is about."""


def head_options(values: dict[str, Any]) -> Head:
    """Options of head and fusion, the vocabulary and the number of images, from the ``head`` of an adapter's config.

    Raises:
        UserError: a kind or an option that this vlkit does not know.
    """
    given = dict(values)
    try:
        fusion = FusionOptions(**given.pop("fusion"))
        vocabulary, images = given.pop("answers"), given.pop("images", 1)
        return Head(VQA_HEADS[given["kind"]](**given), fusion, vocabulary, images)
    except (KeyError, TypeError) as error:
        raise UserError(f"vlkit_adapter.json: the options of 'head' do not fit ({error}); update vlkit") from None
