"""Image-text retrieval: the two-tower model, and its entry in the adapter config."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlkit.adapters.linear import LinearOptions
from vlkit.encoders.bases import ClipBase
from vlkit.tasks.two_tower import EmbeddingHead, HeadOptions, TwoTower


def build_model(base: ClipBase, adapter: Any, head: HeadOptions) -> TwoTower:
    """Apply the same adaptation method to both towers, and add a head to each.

    Args:
        base: the loaded base; its towers become part of the model and are frozen or unfrozen by the method.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: how outputs become embeddings.
    """
    reads = "pooled" if head.pool == "base" else "tokens"
    return TwoTower(
        adapter.build(base.image, reads),
        adapter.build(base.text, reads),
        EmbeddingHead(base.image, head, base.joint_dim),
        EmbeddingHead(base.text, head, base.joint_dim),
        base.logit_scale,
        # If the base has no bias: -10 gives every pair of a large batch the odds of a random pair (SigLIP).
        -10.0 if base.logit_bias is None else base.logit_bias,
    )


def zero_shot(base: ClipBase) -> TwoTower:
    """The unadapted base with the same interface: its own pooling, nothing trained (a pair of encoders: at chance)."""
    return (
        build_model(base, LinearOptions(), HeadOptions(projection=base.joint_dim is not None))
        .requires_grad_(False)
        .eval()
    )


def adapter_config(
    base: ClipBase,
    adapter: Any,
    head: HeadOptions,
    metrics: dict[str, float],
    search: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same base.

    ``search`` is the calibrated threshold (:func:`vlkit.tasks.retrieval.evaluate.calibrated_search`).
    """
    return {
        "task": "retrieval",
        "base": {tower: {**identity, "load": base.name} for tower, identity in base.identity.items()},
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": asdict(head),
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
        **({"search": search} if search else {}),
    }
