"""timm trunks inside open_clip's ``TimmModel`` as staged encoders: plain transformers and towers with stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from vlkit.encoders.blocks.capture import inputs_of, watch
from vlkit.encoders.staged import StagedEncoder, Stream, call_block
from vlkit.encoders.towers.resnet import fast_layout, stage_taps
from vlkit.errors import UserError

# Trunks whose forward is: embed, ``blocks`` (which share their extra arguments), ``norm``, ``forward_head``.
TRANSFORMERS = (VisionTransformer, VisionTransformerRelPos, Eva, Beit)


@dataclass(frozen=True)
class Layout:
    """The structure of a tower with stages, by attribute names.

    Attributes:
        stem: modules before the first stage.
        stages: the stages, or the single list that holds them.
        tail: modules after the last stage, before ``forward_head``.
        channels_last: the trunk stores its grid as [B, H, W, C].
        whole: a stage runs as one block (its own blocks are small and alike), and its width is that of its last
            convolution, because the trunk's ``feature_info`` omits stages that keep the grid's size.
    """

    stem: tuple[str, ...]
    stages: tuple[str, ...]
    tail: tuple[str, ...] = ()
    channels_last: bool = False
    whole: bool = False


HIERARCHIES: dict[type[nn.Module], Layout] = {
    ConvNeXt: Layout(("stem",), ("stages",), ("norm_pre",)),
    FastVit: Layout(("stem",), ("stages",), ("final_conv",)),
    SwinTransformer: Layout(("patch_embed",), ("layers",), ("norm",), channels_last=True),
    ResNet: Layout(("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4")),
    EfficientNet: Layout(("conv_stem", "bn1"), ("blocks",), ("conv_head", "bn2"), whole=True),
    MobileNetV3: Layout(("conv_stem", "bn1"), ("blocks",), whole=True),
}


class BareTimm(nn.Module):
    """A timm trunk with the interface of open_clip's wrapper, without projection.

    Args:
        trunk: timm model without classifier.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> the pooled output of the trunk, [B, D]."""
        return self.trunk(x)


def stage_timm(model: TimmModel | BareTimm) -> StagedEncoder:
    """Stage a wrapper of a timm trunk.

    Raises:
        UserError: the family of the trunk is not supported.
    """
    trunk = model.trunk
    _check_pooling(model)
    if isinstance(trunk, TRANSFORMERS):
        if getattr(trunk, "rope_mixed", False):
            raise UserError(
                "timm trunk with mixed rotary positions: each block has its own; choose a trunk that shares them"
            )
        return TimmTransformer(model)
    layout = next((layout for kind, layout in HIERARCHIES.items() if isinstance(trunk, kind)), None)
    if layout is None:
        families = ", ".join(kind.__name__ for kind in (*TRANSFORMERS, *HIERARCHIES))
        raise UserError(f"timm trunk {type(trunk).__name__}: cannot be staged; these can: {families}")
    if layout.channels_last and "pool" in dict(model.head.named_children()):
        raise UserError(
            f"timm trunk {type(trunk).__name__} with attention pooling: open_clip's own forward fails on it; "
            "choose timm_pool avg"
        )
    return TimmStages(model, layout)


def _check_pooling(model: TimmModel | BareTimm) -> None:
    """Raise :class:`UserError` if neither the trunk nor open_clip's head pools an image to one vector."""
    trunk = model.trunk
    pooling = getattr(trunk, "global_pool", None) or getattr(getattr(trunk, "head", None), "global_pool", "")
    # Either a name, or timm's pooling module, which has the name as attribute.
    if not getattr(pooling, "pool_type", pooling) and "pool" not in dict(model.head.named_children()):
        raise UserError(
            f"timm trunk {type(trunk).__name__} without pooling: it has no pooled embedding; "
            "choose timm_pool avg (or token, if it has a class token)"
        )


class TimmTransformer(StagedEncoder):
    """A timm transformer (ViT, EVA, BEiT, ViTamin, SigLIP, PE ...) with open_clip's head; tokens [B, L, D].

    Args:
        model: open_clip's wrapper; its trunk is one of :data:`TRANSFORMERS`.
    """

    def __init__(self, model: TimmModel | BareTimm) -> None:
        super().__init__()
        self.model = model
        trunk: Any = model.trunk
        watch(trunk.blocks[0])
        self.depth = len(trunk.blocks)
        self.widths = (trunk.embed_dim,) * (self.depth + 1)
        self.stages = tuple(range(self.depth + 1))
        self.token_dim = trunk.embed_dim
        self.out_dim = output_width(model)

    def embed(self, x: Tensor) -> Stream:
        """Images [B, 3, H, W] -> stream with hidden [B, L, D], class and register tokens first."""
        trunk = self.model.trunk
        arguments = inputs_of(trunk.blocks[0], lambda: trunk.forward_features(x))
        hidden = arguments.pop("x")
        summary = None
        if trunk.global_pool == "token" and getattr(trunk, "attn_pool", None) is None:
            summary = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
        return Stream(hidden, summary=summary, extras=arguments)

    def block(self, i: int, stream: Stream) -> Stream:
        """Run transformer block ``i``; [B, L, D] in and out."""
        run = self.runs(call_block)
        return stream.replace(hidden=run(self.model.trunk.blocks[i], stream.hidden, stream.extras))

    def transformer_block(self, i: int) -> nn.Module:
        """timm's block ``i``."""
        return self.model.trunk.blocks[i]

    def pool(self, stream: Stream) -> Tensor:
        """Pooled and projected image embedding, [B, out_dim]."""
        trunk = self.model.trunk
        return self.model.head(trunk.forward_head(trunk.norm(stream.hidden)))

    def tokens(self, stream: Stream) -> Tensor:
        """[B, L, D] after the final norm (a norm that the trunk applies after pooling is applied to every token)."""
        trunk = self.model.trunk
        norm = trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm
        return norm(stream.hidden)

    def grid(self, stream: Stream) -> tuple[int, int] | None:
        """Rows and columns of the patches, which follow class and register tokens."""
        trunk = self.model.trunk
        size = getattr(trunk.patch_embed, "grid_size", None)
        if size is None:
            return None
        # A trunk that accepts any image size still reports the grid of its original size.
        cells = stream.hidden.shape[1] - getattr(trunk, "num_prefix_tokens", 0)
        side = math.isqrt(cells)
        return (side, side) if size[0] * size[1] != cells == side * side else (size[0], size[1])


class TimmStages(StagedEncoder):
    """A timm tower with stages (ConvNeXt, FastViT, Swin, ResNet, EfficientNet); ``hidden`` is [B, C, H, W].

    A block is one block of a stage, or a whole stage if the layout says so; the first block of a stage includes the
    stage's downsampling.

    Args:
        model: open_clip's wrapper.
        layout: the structure of its trunk.
    """

    spatial = True

    def __init__(self, model: TimmModel | BareTimm, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self._layout = layout
        lengths = [len(self._blocks(stage)) for stage in self._stages()]
        self.depth = sum(lengths)
        self.widths = self._widths(lengths)
        self.stages = stage_taps(lengths)
        self.token_dim = self.model.trunk.num_features
        self.out_dim = output_width(model)

    def _stages(self) -> list[nn.Module]:
        modules = [self.model.trunk.get_submodule(name) for name in self._layout.stages]
        return list(modules[0]) if len(modules) == 1 else modules

    def _blocks(self, stage: Any) -> Sequence[nn.Module]:
        """The blocks of a stage: the whole stage, its list ``blocks``, or the stage itself if it is a list."""
        return [stage] if self._layout.whole else getattr(stage, "blocks", stage)

    def _widths(self, lengths: list[int]) -> tuple[int, ...]:
        trunk = self.model.trunk
        if self._layout.whole:
            stem = trunk.get_submodule(self._layout.stem[0])
            return tuple(_last_width(part) for part in (stem, *self._stages()))
        channels = [info["num_chs"] for info in trunk.feature_info[-len(lengths) :]]
        repeated = (width for width, length in zip(channels, lengths, strict=True) for _ in range(length))
        return (trunk.feature_info[0]["num_chs"], *repeated)

    def embed(self, x: Tensor) -> Stream:
        """Images [B, 3, H, W] -> stream with the stem's grid [B, C, h, w]."""
        x = fast_layout(x)
        for name in self._layout.stem:
            x = self.model.trunk.get_submodule(name)(x)
        return Stream(self._channels_first(x))

    def block(self, i: int, stream: Stream) -> Stream:
        """Run block ``i``, counted over all stages; [B, C, H, W] in and out."""
        hidden = stream.hidden.permute(0, 2, 3, 1) if self._layout.channels_last else stream.hidden
        return stream.replace(hidden=self._channels_first(self._run(i, hidden)))

    def _run(self, i: int, hidden: Tensor) -> Tensor:
        for stage in self._stages():
            blocks = self._blocks(stage)
            if i >= len(blocks):
                i -= len(blocks)
                continue
            if i == 0 and hasattr(stage, "blocks"):
                for name, module in stage.named_children():
                    if name != "blocks":
                        hidden = module(hidden)
            return blocks[i](hidden)
        raise IndexError(f"block {i + self.depth} of {self.depth}")

    def pool(self, stream: Stream) -> Tensor:
        """Pooled and projected image embedding, [B, out_dim]."""
        return self.model.head(self.model.trunk.forward_head(self._after_stages(stream)))

    def tokens(self, stream: Stream) -> Tensor:
        """Grid cells row by row, [B, H * W, token_dim], after the trunk's last modules and the norm of its head."""
        hidden = self._channels_first(self._after_stages(stream))
        norm = getattr(getattr(self.model.trunk, "head", None), "norm", None)
        if norm is not None:
            hidden = norm(hidden)
        return hidden.flatten(2).transpose(1, 2)

    def _after_stages(self, stream: Stream) -> Tensor:
        hidden = stream.hidden.permute(0, 2, 3, 1) if self._layout.channels_last else stream.hidden
        for name in self._layout.tail:
            hidden = self.model.trunk.get_submodule(name)(hidden)
        return hidden

    def _channels_first(self, hidden: Tensor) -> Tensor:
        return hidden.permute(0, 3, 1, 2) if self._layout.channels_last else hidden


def _last_width(module: nn.Module) -> int:
    """Output channels of the last convolution in a module."""
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)][-1].out_channels


def output_width(model: TimmModel | BareTimm) -> int:
    """Width of the embedding that a wrapper of a timm trunk returns."""
    children: dict[str, Any] = dict(model.head.named_children())
    if "proj" in children:
        return children["proj"].out_features
    if "mlp" in children:
        return children["mlp"].fc2.out_features
    if "pool" in children:
        return children["pool"].proj.out_features
    trunk: Any = model.trunk
    return trunk.num_classes or trunk.head_hidden_size
