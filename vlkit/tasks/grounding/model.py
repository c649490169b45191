"""Visual grounding: the model, and its entry in the adapter config."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from vlkit.adapters.facts import MethodOptions
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.errors import UserError
from vlkit.tasks.fusion import Fusion, FusionOptions
from vlkit.tasks.grounding.data import Shape
from vlkit.tasks.grounding.head import BoxHead, Grounder, GroundingOptions, Neck


def build_model(
    base: ClipBase, text: TextSide, adapter: MethodOptions, fusion: FusionOptions, head: GroundingOptions
) -> Grounder:
    """Apply the same adaptation method to both towers, and add neck, fusion and box head on their tokens.

    Args:
        base: the loaded base; its image tower becomes part of the model.
        text: the side that reads texts; its tower becomes part of the model.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        fusion, head: their options.
    """
    # A folder from before records no place for the merge, which has always been behind the last block.
    adapter, fusion = adapter.for_cells(), fusion.beside(adapter)
    neck = Neck(base.image, fusion.width, fusion.neck, fusion.match)
    return Grounder(
        adapter.build(base.image, "tokens"),
        adapter.build(text.encoder, "tokens"),
        neck,
        Fusion(neck, text.encoder, replace(fusion, neck=0), head.queries),
        BoxHead(text.encoder, fusion.width, head.places),
    )


def identities(base: ClipBase, text: TextSide) -> dict[str, dict[str, Any]]:
    """Identity of the two towers, and the names they are loaded by."""
    return {"image": {**base.identity["image"], "load": base.name}, "text": text.identity["text"]}


def adapter_config(
    base: ClipBase,
    text: TextSide,
    adapter: MethodOptions,
    fusion: FusionOptions,
    head: GroundingOptions,
    shape: Shape,
    image_size: int | None,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same bases."""
    return {
        "task": "grounding",
        "base": identities(base, text),
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": {"fusion": asdict(fusion), **asdict(head)},
        "preprocess": {**base.preprocess.to_dict(), "shape": shape, "image_size": image_size},
        "metrics": metrics,
    }


def head_options(values: dict[str, Any]) -> tuple[GroundingOptions, FusionOptions]:
    """Options of head and fusion from the ``head`` of an adapter's config; without ``places``, its head has none.

    Raises:
        UserError: an option that this vlkit does not know.
    """
    given = {"places": False, **values}
    try:
        fusion = FusionOptions(**given.pop("fusion"))
        return GroundingOptions(**given), fusion
    except (KeyError, TypeError) as error:
        raise UserError(f"vlkit_adapter.json: the options of 'head' do not fit ({error}); update vlkit") from None


def load_shape(preprocess: dict[str, Any]) -> Shape:
    """The fitting shape that a saved adapter was trained with.

    Raises:
        UserError: a shape that this vlkit does not know.
    """
    shape = preprocess.get("shape")
    if shape not in ("squash", "letterbox"):
        raise UserError(f"vlkit_adapter.json: preprocess.shape {shape!r} is not squash or letterbox; update vlkit")
    return shape
