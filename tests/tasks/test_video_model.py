"""The video-text model: frames in lots give the gradient of the whole batch; memory does not follow their number."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from helpers.tiny import IMAGE_SIZE, clip_ids, tiny_clip
from vlkit.adapters import ADAPTERS
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.bases import ClipBase, Preprocess, clip_base
from vlkit.memory import measure_step
from vlkit.tasks.contrastive import gather_pairs, info_nce, symmetric_cross_entropy
from vlkit.tasks.retrieval.model import build_model as build_images
from vlkit.tasks.video_retrieval.model import VideoHeadOptions, VideoText, build_model, zero_shot

# Compressed activations round gradients by blocks of values that differ between chunks and the whole batch.
EXACT = {"s2a": {"saved": "fp32"}}
KINDS = [pytest.param(kind(**EXACT.get(name, {})), id=name) for name, kind in ADAPTERS.items()]
SHERLS = [
    pytest.param(SherlOptions(handoff="pooled"), id="pooled"),
    pytest.param(SherlOptions(handoff="tokens", dropout=0.0), id="tokens"),
]


def base(seed: int = 0) -> ClipBase:
    preprocess = Preprocess((IMAGE_SIZE, IMAGE_SIZE), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    named = {"library": "test", "name": "tiny", "weights": "random"}
    return clip_base(tiny_clip(seed), "tiny test", lambda texts: clip_ids((4,) * len(texts)), preprocess, named)


def model_of(options: object, head: VideoHeadOptions | None = None) -> VideoText:
    """The model with every trained weight off its initial value, so that none hides behind a zero."""
    torch.manual_seed(0)
    model = build_model(base(), options, head or VideoHeadOptions())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model.train()


def videos(counts: tuple[int, ...], seed: int = 0) -> Frames:
    generator = torch.Generator().manual_seed(seed)
    size = (3, IMAGE_SIZE, IMAGE_SIZE)
    return Frames.of([torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=generator) for n in counts])


def loss_of(model: VideoText, frames: Frames, chunk: int) -> Tensor:
    count = len(frames.mask)
    embedded, texts, scale = model(frames, clip_ids(tuple(range(4, 4 + count))), chunk)
    return info_nce(gather_pairs(embedded, texts, torch.arange(count)), scale)


def gradients(model: VideoText, frames: Frames, chunk: int, seed: int = 0) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(seed)
    Fabric(accelerator="cpu", devices=1).backward(loss_of(model, frames, chunk))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_frames_are_flat_and_masked():
    frames = videos((3, 1, 2))
    assert len(frames) == 6
    assert frames.mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert frames.rows.tolist() == [[0, 1, 2], [3, 0, 0], [4, 5, 0]]
    assert [len(part) for part in frames.chunks(4)] == [4, 2] and len(frames.chunks(0)) == 1


def test_a_video_is_the_mean_of_its_frames_as_images():
    plain, images = zero_shot(base()), build_images(base(), ADAPTERS["linear"](), VideoHeadOptions()).eval()
    frames = videos((3, 1, 2))
    values = (frames.pixels.float() / 255 - plain.mean) / plain.std
    with torch.no_grad():
        single = images.embed_images(values)  # unit norm
        found = plain.embed_videos(frames, chunk=2)
        again = plain.embed_images(frames.pixels)
    for video, rows in enumerate(([0, 1, 2], [3], [4, 5])):
        mean = single[rows].mean(0)
        torch.testing.assert_close(found[video], mean / mean.norm())
    torch.testing.assert_close(again, single)


def test_the_loss_is_clip4clips():
    """In-batch softmax both ways over the mean of unit frames, with the base's own frozen scale."""
    model = model_of(ADAPTERS["linear"]())
    frames, ids = videos((2, 3)), clip_ids((4, 5))
    embedded, texts, scale = model(frames, ids)
    assert not scale.requires_grad and not model.towers.logit_bias.requires_grad
    expected = symmetric_cross_entropy(scale * texts @ embedded.T)
    torch.testing.assert_close(loss_of(model, frames, 0), expected)
    trained = build_model(base(), ADAPTERS["linear"](), VideoHeadOptions(scale="trained"))
    assert trained.towers.logit_scale.requires_grad


@pytest.mark.parametrize("options", [*KINDS, *SHERLS])
@pytest.mark.parametrize("temporal", ["mean", "transformer"])
def test_chunks_give_the_gradient_of_the_whole_batch(options: object, temporal: str):
    model = model_of(options, VideoHeadOptions(temporal=temporal, scale="trained"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    frames = videos((3, 1, 2, 4))
    whole, chunked = gradients(model, frames, 0), gradients(model, frames, 3)
    assert whole.keys() == chunked.keys() and whole
    for name in whole:
        torch.testing.assert_close(chunked[name], whole[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_draws_the_same_masks_when_a_chunk_is_encoded_again():
    """With dropout, the gradient must belong to the loss that was computed: compare with finite differences."""
    model = model_of(SherlOptions(handoff="tokens", dropout=0.5)).double()
    frames = videos((2, 2))
    name, parameter = next((n, p) for n, p in model.named_parameters() if "image.adapter" in n and p.dim() == 2)
    found = gradients(model, frames, 2)[name]
    direction = torch.randn_like(parameter)

    def shifted(step: float) -> Tensor:
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            torch.manual_seed(0)
            value = loss_of(model, frames, 2)
            parameter.sub_(direction, alpha=step)
        return value

    slope = (shifted(1e-3) - shifted(-1e-3)) / 2e-3
    expected = (found * direction).sum().float()
    assert abs(expected) > 1e-3
    torch.testing.assert_close(slope, expected, rtol=0.02, atol=0)  # embeddings, and so the loss, are float32


@pytest.mark.slow
@pytest.mark.parametrize("options", [*SHERLS, pytest.param(ADAPTERS["linear"](), id="linear")])
def test_peak_memory_does_not_grow_with_the_number_of_frames(options: object):
    def peak(count: int, chunk: int) -> int:
        model = model_of(options)
        frames = videos((count,) * 8)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
        return measure_step(model, lambda: loss_of(model, frames, chunk), optimizer).peak_bytes

    flat = {count: peak(count, 8) for count in (4, 8, 16, 32)}
    # What does grow is one vector a frame.
    embeddings = 8 * (32 - 4) * base().image.out_dim * 4
    assert flat[32] - flat[4] < 12 * embeddings, flat
    assert flat[32] < 1.25 * flat[4], flat
    if options.kind != "linear":
        assert peak(32, 0) > 2.5 * peak(8, 0), "without chunks it does grow"


def test_frozen_tower_without_taps_is_read_once():
    linear, sherl = model_of(ADAPTERS["linear"]()), model_of(SherlOptions())
    assert not linear.keeps_activations and sherl.keeps_activations
    calls = {"linear": 0, "sherl": 0}
    for name, model in (("linear", linear), ("sherl", sherl)):
        model.towers.image.register_forward_pre_hook(lambda *_, n=name: calls.__setitem__(n, calls[n] + 1))
        gradients(model, videos((2, 2)), 2)
    assert calls == {"linear": 2, "sherl": 4}


def test_head_options_are_json():
    options = VideoHeadOptions(temporal="lstm", temporal_layers=2)
    assert VideoHeadOptions(**dataclasses.asdict(options)) == options
