"""Temporal heads: against plain definitions, masks, and training that starts at the mean."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from vlkit.errors import UserError
from vlkit.tasks.video_retrieval.model import VideoHeadOptions
from vlkit.tasks.video_retrieval.temporal import LstmFrames, TransformerFrames, mean_frames, quick_gelu, temporal_head

KINDS = ("mean", "lstm", "transformer")
WIDTH = 128


def videos(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three videos of 5, 1 and 3 frames."""
    frames = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(seed)) * 3
    return frames, torch.arange(5) < torch.tensor([[5], [1], [3]])


def moved(head: torch.nn.Module) -> torch.nn.Module:
    """The head with every weight off its initial value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return head


def test_mean_is_the_mean_of_unit_frames():
    frames, mask = videos()
    for i, count in enumerate((5, 1, 3)):
        unit = frames[i, :count] / frames[i, :count].norm(dim=-1, keepdim=True)
        expected = unit.mean(0) / unit.mean(0).norm()
        torch.testing.assert_close(temporal_head("mean", WIDTH)(frames, mask)[i], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_training_starts_exactly_at_the_mean_and_can_leave_it(kind: str):
    frames, mask = videos()
    head = temporal_head(kind, WIDTH, layers=None if kind == "mean" else 2)
    out = head(frames, mask)
    torch.testing.assert_close(out, mean_frames(frames, mask), atol=1e-6, rtol=1e-5)
    if kind != "mean":
        out[:, 0].sum().backward()
        with torch.no_grad():
            for parameter in head.parameters():
                if parameter.grad is not None:
                    parameter -= parameter.grad * 0.1
        assert (head(frames, mask) - mean_frames(frames, mask)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_published_init_is_not_the_mean(kind: str):
    frames, mask = videos()
    head = temporal_head(kind, WIDTH, init="published")
    assert (head(frames, mask) - mean_frames(frames, mask)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind: str):
    frames, mask = videos()
    head = moved(temporal_head(kind, WIDTH)).eval()
    out = head(frames, mask)
    noise = torch.where(mask.unsqueeze(-1), frames, torch.full_like(frames, 7.0))
    torch.testing.assert_close(head(noise, mask), out)
    alone = head(frames[2:, :3], mask[2:, :3])
    torch.testing.assert_close(alone, out[2:], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_without_frames_is_zero_and_has_a_finite_gradient(kind: str):
    frames, mask = videos()
    mask[1] = False
    head = moved(temporal_head(kind, WIDTH))
    frames.requires_grad_()
    out = head(frames, mask)
    assert out[1].abs().max() == 0 and out[[0, 2]].norm(dim=-1).min() > 0.99
    out.sum().backward()
    assert torch.isfinite(frames.grad).all() and frames.grad[1].abs().max() == 0


@pytest.mark.parametrize("kind", ["lstm", "transformer"])
def test_order_of_frames_matters(kind: str):
    frames, mask = videos()
    head = moved(temporal_head(kind, WIDTH))
    turned = frames.clone()
    turned[0] = frames[0].flip(0)
    assert (head(turned, mask)[0] - head(frames, mask)[0]).abs().max() > 1e-3


def test_lstm_is_a_residual_lstm():
    frames, mask = videos()
    head = moved(LstmFrames(WIDTH))
    hidden, cell = torch.zeros(1, WIDTH), torch.zeros(1, WIDTH)
    out = []
    for frame in frames[0]:
        gates = F.linear(frame[None], head.lstm.weight_ih_l0, head.lstm.bias_ih_l0)
        gates = gates + F.linear(hidden, head.lstm.weight_hh_l0, head.lstm.bias_hh_l0)
        enter, forget, candidate, leave = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        out.append(hidden[0] + frame)
    expected = mean_frames(torch.stack(out)[None], mask[:1])
    torch.testing.assert_close(head(frames, mask)[:1], expected, atol=1e-5, rtol=1e-5)


def test_transformer_is_clips_block():
    """One block equals open_clip's own, with its norm's eps and activation set to the published ones."""
    frames, mask = videos()
    head = moved(TransformerFrames(WIDTH, layers=1))
    block = head.blocks[0]
    theirs = ResidualAttentionBlock(WIDTH, WIDTH // 64, batch_first=True)
    theirs.ln_1.eps = theirs.ln_2.eps = 1e-12
    theirs.mlp.gelu.forward = quick_gelu
    names = {"norm1": "ln_1", "norm2": "ln_2", "self_attn": "attn", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
    state = block.state_dict()
    theirs.load_state_dict(
        {name.replace(a, b): state[name] for name in state for a, b in names.items() if name.startswith(f"{a}.")}
    )
    hidden = theirs(frames + head.positions.weight[:5], attn_mask=None)
    expected = mean_frames(frames + hidden, mask)
    torch.testing.assert_close(head(frames, mask)[0], expected[0], atol=1e-5, rtol=1e-4)


def test_more_frames_than_positions_are_refused():
    VideoHeadOptions(temporal="transformer").check_frames(128)
    VideoHeadOptions(temporal="lstm").check_frames(500)
    with pytest.raises(UserError, match="--frames 129"):
        VideoHeadOptions(temporal="transformer").check_frames(129)
    with pytest.raises(UserError, match="128"):
        TransformerFrames(64)(torch.zeros(1, 129, 64), torch.ones(1, 129, dtype=torch.bool))


@pytest.mark.parametrize(("kind", "layers"), [("mean", 1), ("lstm", 0), ("transformer", -1)])
def test_wrong_number_of_layers(kind: str, layers: int):
    with pytest.raises(UserError, match=r"--head\.temporal_layers"):
        VideoHeadOptions(temporal=kind, temporal_layers=layers)
