"""BlackVIP's coordinator: a frozen encoder and a small decoder that add a prompt to each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.blackvip.decoder import UPSCALE, Arch, PromptDecoder
from vlkit.encoders.staged import StagedEncoder, freeze, in_weights_format, run_blocks
from vlkit.errors import UserError

Feature = Literal["auto", "cls", "normed", "pooled"]
"""What the decoder reads of the encoder: the class token after the last block (ViT-MAE), the same behind the final norm
(supervised ViT), the pooled embedding (ResNet); auto = cls if there is a class token, else pooled."""


class Coordinator(nn.Module):
    """Images -> prompted images; only ``decoder`` trains, and only its batch norms know training mode.

    Args:
        encoder: any tower for images; it is frozen. It gets the pixels as the target does, which is how the paper runs
            it, resized if it is built for another size.
        mean, std: normalisation of the pixels, that of the target.
        size: height and width of the target's images.
        eps: factor on the prompt (p_eps).
        channels: channels of the decoder's first grid.
        arch: see :data:`vlkit.adapters.blackvip.decoder.Arch`.
        feature: see :data:`Feature`.
        encoder_size: height and width that the encoder is built for; None = any.

    Raises:
        UserError: the encoder has no such feature, or the channels do not fit it.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        encoder: StagedEncoder,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int],
        eps: float = 1.0,
        channels: int = 32,
        arch: Arch = "vit",
        feature: Feature = "auto",
        encoder_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.eps, self.size, self.encoder_size = freeze(encoder), eps, size, encoder_size
        with torch.no_grad():
            device = next(encoder.parameters()).device
            probe = encoder.embed(torch.zeros(1, 3, *(encoder_size or size), device=device))
        has_token = probe.summary is not None
        if feature in ("cls", "normed") and not has_token:
            raise UserError(f"--feature {feature}: {encoder.kind} has no class token; use --feature pooled")
        self.feature = ("cls" if has_token else "pooled") if feature == "auto" else feature
        width = {"cls": encoder.widths[-1], "normed": encoder.token_dim, "pooled": encoder.out_dim}[self.feature]
        grid = -(-max(size) // UPSCALE)
        try:
            self.decoder = PromptDecoder(width, channels, grid, arch)
        except ValueError as error:
            raise UserError(f"--channels {channels}: {error}; give 32, 64 or more") from None
        for name, edge in (("low", 0.0), ("high", 1.0)):
            values = [(edge - m) / s for m, s in zip(mean, std, strict=True)]
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> features [B, F]; they depend on the image alone, so they can be stored."""
        if self.encoder_size is not None and pixels.shape[-2:] != self.encoder_size:
            pixels = F.interpolate(pixels, self.encoder_size, mode="bilinear", antialias=True)
        stream = self.encoder.embed(in_weights_format(self.encoder, pixels))
        stream = run_blocks(self.encoder, stream, 0, self.encoder.depth)
        if self.feature == "pooled":
            return self.encoder.pool(stream)
        tokens = stream.hidden if self.feature == "cls" else self.encoder.tokens(stream)
        return tokens[torch.arange(len(tokens), device=tokens.device), cast(Tensor, stream.summary)]

    def prompts(self, features: Tensor) -> Tensor:
        """Features [B, F] -> prompts [B, 3, H, W]."""
        prompts = self.decoder(features)
        return prompts if prompts.shape[-2:] == self.size else F.interpolate(prompts, self.size, mode="bilinear")

    def forward(self, pixels: Tensor, features: Tensor | None = None) -> Tensor:
        """Add the prompts.

        Args:
            pixels: [B, 3, H, W], normalised.
            features: their :meth:`features`, if they are known.

        Returns:
            [B, 3, H, W], normalised, within the range of real pixels.
        """
        prompts = self.prompts(self.features(pixels) if features is None else features)
        return (pixels + self.eps * prompts).clamp(self.low, self.high)

    def train(self, mode: bool = True) -> Coordinator:
        """Switch the decoder; the encoder stays in eval mode."""
        super().train(mode)
        return self
