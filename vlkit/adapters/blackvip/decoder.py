"""BlackVIP's decoder: the features of an image and a learned trigger -> a prompt as large as the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Arch = Literal["vit", "resnet"]
"""Published decoders: behind a ViT, or behind DINO's ResNet-50; they differ in the groups of the first layer."""

UPSCALE = 32
"""The prompt is this many times as large as the decoder's first grid: five layers of stride 2."""
NORM_EPS = 1e-5
RESNET_GROUPS = 32


class PromptDecoder(nn.Module):
    """Five transposed convolutions from a small grid to an image; the first tensor is the trigger.

    The order of the parameters is that of the published code: the trigger, then ``body``.

    Args:
        features: width of the image features.
        channels: channels of the first grid; 32 behind a ViT and 64 behind DINO's ResNet-50 as published.
        grid: side of the first grid; the prompt has side ``32 * grid`` (7: 224 pixels).
        arch: see :data:`Arch`.

    Raises:
        ValueError: the grid holds fewer values than the features, or the channels do not fit the first layer.
    """

    def __init__(self, features: int, channels: int = 32, grid: int = 7, arch: Arch = "vit") -> None:
        super().__init__()
        self.grid, self.channels, self.arch = grid, channels, arch
        trigger = channels * grid * grid - features
        if trigger < 0:
            raise ValueError(
                f"{channels} channels on a {grid} x {grid} grid hold fewer values than {features} features"
            )
        groups = RESNET_GROUPS if arch == "resnet" else min(channels, 64)
        if channels % groups or 64 % groups:
            raise ValueError(f"{channels} channels do not fit the {groups} groups of the first layer")
        self.trigger = nn.Parameter(torch.rand(1, trigger) * 0.1)
        self.body = nn.Sequential(
            *_stage(channels, 64, 64, groups),
            *_stage(64, 64, 32, 64),
            *_stage(32, 32, 32, 32),
            *_stage(32, 32, 16, 32),
            nn.ConvTranspose2d(16, 3, 2, stride=2, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> prompts [B, 3, 32 grid, 32 grid]."""
        whole = torch.cat([features, self.trigger.expand(len(features), -1)], dim=1)
        return self.body(whole.view(-1, self.channels, self.grid, self.grid))


def _stage(inside: int, middle: int, out: int, groups: int) -> list[nn.Module]:
    """Double the grid: grouped 2 x 2 with stride 2, then 1 x 1, norm, GELU."""
    return [
        nn.ConvTranspose2d(inside, middle, 2, stride=2, groups=groups),
        nn.ConvTranspose2d(middle, out, 1, bias=False),
        nn.BatchNorm2d(out, eps=NORM_EPS),
        nn.GELU(),
    ]
