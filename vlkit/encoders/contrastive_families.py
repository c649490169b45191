"""Contrastive models of transformers (CLIP, SigLIP): one row per family.

To add a family whose blocks have these parts, add a row to :data:`CONTRASTIVE`; a tower that pools in another way also
needs a class in :mod:`vlkit.encoders.towers.hf_contrastive`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vlkit.encoders.blocks.parts import AttentionParts, BlockParts


@dataclass(frozen=True)
class Contrastive:
    """A family of contrastive models.

    Attributes:
        name: common name.
        kind: ``model_type`` in its ``config.json``.
        model: transformers class of the whole model.
        block: class of the blocks of both towers.
        parts: paths to the parts of a block.
        example: a model of the family on the hub.
        shares_bias: see :class:`vlkit.encoders.families.Family`.
    """

    name: str
    kind: str
    model: str
    block: str
    parts: BlockParts
    example: str
    shares_bias: ClassVar[bool] = False


CLIP = Contrastive(
    name="CLIP",
    kind="clip",
    model="CLIPModel",
    block="CLIPEncoderLayer",
    parts=BlockParts(
        norm_first=True,
        attention=AttentionParts(
            query="self_attn.q_proj",
            key="self_attn.k_proj",
            value="self_attn.v_proj",
            out="self_attn.out_proj",
            norm="layer_norm1",
            heads="self_attn.num_heads",
        ),
        expand=("mlp.fc1",),
        shrink="mlp.fc2",
        mlp=("mlp",),
        mlp_norm="layer_norm2",
        widths=("hidden_size", "intermediate_size"),
        heads="num_attention_heads",
    ),
    example="openai/clip-vit-base-patch32",
)
SIGLIP = replace(
    CLIP,
    name="SigLIP",
    kind="siglip",
    model="SiglipModel",
    block="SiglipEncoderLayer",
    example="google/siglip2-base-patch16-224",
)
# SigLIP 2 with images of one size has SigLIP's model_type.
CONTRASTIVE = (CLIP, SIGLIP)


def contrastive_of_kind(kind: str) -> Contrastive | None:
    """The family with this ``model_type``, or None."""
    return next((family for family in CONTRASTIVE if family.kind == kind), None)
