"""Image-text retrieval: the two-tower model, and what its adapter folder says about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlkit.adapters.linear import LinearOptions
from vlkit.encoders.bases import ClipBase
from vlkit.tasks.two_tower import EmbeddingHead, HeadOptions, TwoTower


def build_model(base: ClipBase, adapter: Any, head: HeadOptions) -> TwoTower:
    """Put the same adaptation method on both towers and a head on each.

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
        # Without a bias of the base's own: -10 gives every pair of a large batch the odds of a random one (SigLIP).
        -10.0 if base.logit_bias is None else base.logit_bias,
    )


def zero_shot(base: ClipBase) -> TwoTower:
    """The base as it is, behind the same interface: its own pooling, nothing trained (a pair: at chance)."""
    return (
        build_model(base, LinearOptions(), HeadOptions(projection=base.joint_dim is not None))
        .requires_grad_(False)
        .eval()
    )


def adapter_config(base: ClipBase, adapter: Any, head: HeadOptions, metrics: dict[str, float]) -> dict[str, Any]:
    """What ``adapter_config.json`` says: everything needed to build this model again on the same base."""
    return {
        "task": "retrieval",
        "base": {tower: {**identity, "load": base.name} for tower, identity in base.identity.items()},
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": asdict(head),
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
    }
