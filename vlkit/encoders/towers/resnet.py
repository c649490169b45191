"""open_clip's own ResNet (RN50 ... RN50x64) as a staged encoder."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from vlkit.encoders.staged import StagedEncoder, Stream


class ClipResNet(StagedEncoder):
    """open_clip ``ModifiedResNet``: a block is one bottleneck, ``hidden`` is a grid [B, C, H, W].

    Args:
        model: the tower; its attention pooling only works at the image size it was built for.
    """

    spatial = True

    def __init__(self, model: ModifiedResNet) -> None:
        super().__init__()
        self.model = model
        bottlenecks: list[Any] = [block for stage in self._stages() for block in stage]
        self.depth = len(bottlenecks)
        stem: Any = model.conv3
        self.widths = (stem.out_channels, *(block.conv3.out_channels for block in bottlenecks))
        self.stages = stage_taps([len(stage) for stage in self._stages()])
        self.token_dim = self.widths[-1]
        self.out_dim = model.attnpool.c_proj.out_features

    def _stages(self) -> tuple[nn.Sequential, ...]:
        return self.model.layer1, self.model.layer2, self.model.layer3, self.model.layer4

    def embed(self, x: Tensor) -> Stream:
        """Images [B, 3, H, W] -> stream with hidden [B, C, H / 4, W / 4]."""
        return Stream(self.model.stem(fast_layout(x)))

    def block(self, i: int, stream: Stream) -> Stream:
        """Run bottleneck ``i``, counted over all four stages."""
        for stage in self._stages():
            if i < len(stage):
                return stream.replace(hidden=stage[i](stream.hidden))
            i -= len(stage)
        raise IndexError(f"block {i + self.depth} of {self.depth}")

    def pool(self, stream: Stream) -> Tensor:
        """Attention-pooled image embedding, [B, out_dim]."""
        return self.model.attnpool(stream.hidden)

    def tokens(self, stream: Stream) -> Tensor:
        """Grid cells row by row, [B, H * W, C]; a ResNet has no final norm."""
        return stream.hidden.flatten(2).transpose(1, 2)


def fast_layout(images: Tensor) -> Tensor:
    """Images [B, 3, H, W], stored pixel by pixel (``torch.channels_last``), which convolutions hand on.

    Convolutions, batch norms and activations are faster on it: EfficientNet-Lite0 takes two thirds of the time on a
    CPU, and half precision on a GPU needs no transposition before tensor cores. With gradient the images stay as they
    are, because backward through the first layer would save the copy.
    """
    return images if torch.is_grad_enabled() else images.contiguous(memory_format=torch.channels_last)


def stage_taps(lengths: list[int]) -> tuple[int, ...]:
    """Default taps of a tower with stages: the end of every stage, and every block of the last stage.

    Args:
        lengths: blocks per stage, shallow to deep.
    """
    ends = list(accumulate(lengths))
    before_last = ends[-2] if len(ends) > 1 else 0
    return (*ends[:-1], *range(before_last + 1, ends[-1] + 1))
