"""Turn a library's model into staged encoders, or say why it cannot be staged."""

from __future__ import annotations

from typing import cast

from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from torch import nn

from vlkit.encoders.families import family_names, family_of_encoder, known_family
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.towers.hf_text import ClipHfText, HfEncoder, trunk_of
from vlkit.encoders.towers.open_clip import ClipText, ClipVision, text_half
from vlkit.encoders.towers.resnet import ClipResNet
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.encoders.towers.text import TextEncoder
from vlkit.encoders.towers.timm_vision import BareTimm, stage_timm
from vlkit.errors import UserError

VISION_TOWERS = (
    "open_clip vision transformers and ResNets, and timm trunks: ViT, EVA, BEiT, ConvNeXt, FastViT, Swin, ResNet, "
    "EfficientNet, MobileNetV3"
)


def text_towers() -> str:
    """The text towers that can be staged, for messages."""
    return f"open_clip text transformers, and these of transformers: {family_names()}"


def stage_vision(model: nn.Module) -> StagedEncoder:
    """Stage the vision tower of an open_clip model.

    Args:
        model: an open_clip model (``CLIP``, ``CustomTextCLIP``, ``CoCa``) or its ``visual``.

    Raises:
        UserError: the tower cannot be staged; the message says which ones can.
    """
    tower = getattr(model, "visual", model)
    if isinstance(tower, VisionTransformer):
        contrastive = tower.attn_pool is not None and tower.attn_pool_contrastive is not None
        if tower.pool_type == "none" and not contrastive:
            raise UserError("vision tower with pool_type none: it has no pooled embedding; choose a tower that pools")
        return ClipVision(tower)
    if isinstance(tower, ModifiedResNet):
        return ClipResNet(tower)
    if isinstance(tower, TimmModel | BareTimm):
        return stage_timm(tower)
    raise UserError(f"vision tower {type(tower).__name__}: cannot be staged; these can: {VISION_TOWERS}")


def stage_text(model: nn.Module, pad_id: int | None = None) -> TextEncoder:
    """Stage the text tower of an open_clip model, or a transformers encoder.

    Args:
        model: an open_clip model, its ``text``, or a transformers encoder.
        pad_id: padding id of the tokenizer, if the tower does not know it.

    Raises:
        UserError: the tower cannot be staged; the message says which ones can.
    """
    if isinstance(model, CLIP):
        tower: nn.Module = text_half(model)
    else:
        tower = getattr(model, "text", model)
    if isinstance(tower, TextTransformer):
        if tower.pool_type == "none" and tower.cls_emb is None:
            raise UserError("text tower with pool_type none: it has no pooled embedding; choose a tower that pools")
        return ClipText(tower, pad_id)
    if isinstance(tower, HFTextEncoder):
        return _stage_clip_hf(tower)
    return stage_hf(tower)


def _stage_clip_hf(tower: HFTextEncoder) -> TextEncoder:
    _check_family(tower.transformer)
    if type(tower.pooler).__name__ == "MaxPooler":
        raise UserError("text tower with max_pooler: open_clip's own forward fails on it; choose mean or cls pooling")
    return ClipHfText(tower)


def stage_hf(model: nn.Module) -> TextEncoder:
    """Stage a transformers encoder of one of the :data:`vlkit.encoders.families.FAMILIES`.

    Args:
        model: the encoder, or a model with an ``encoder`` (:func:`stage_t5_decoder` stages T5's decoder).

    Raises:
        UserError: the model cannot be staged; the message says which ones can.
    """
    _check_family(model)
    return HfEncoder(model)


def _check_family(model: nn.Module) -> None:
    trunk = trunk_of(model)
    if trunk is None:
        raise UserError(f"text tower {type(model).__name__}: cannot be staged; these can: {text_towers()}")
    unfit = known_family(trunk).unfit(trunk.config)
    if unfit:
        raise UserError(f"text tower {type(trunk).__name__} with {unfit}: cannot be staged; choose a model without it")


def stage_t5_decoder(model: nn.Module) -> T5Decoder:
    """Stage the decoder of a model like ``T5ForConditionalGeneration``.

    Raises:
        UserError: the model has no T5 decoder.
    """
    stack = getattr(model, "decoder", None)
    family = family_of_encoder(stack)
    if family is None or family.generator is None or not hasattr(model, "lm_head"):
        raise UserError(f"{type(model).__name__}: has no T5 decoder to stage; use a T5ForConditionalGeneration")
    return T5Decoder(stack, cast(nn.Module, model.lm_head))
