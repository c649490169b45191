"""The operations inside SHERL: redundancy, dead scores, zeros, the pooled form, published sizes and names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vlkit.adapters.published.names import import_published, strip_prefix, to_upstream
from vlkit.adapters.sherl.blocks import ConvReducer, LateGate, LinearHead, RedundancyAggregator
from vlkit.adapters.sherl.conv import ConvSherlAdapter
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.adapters.sherl.pooled_lean import LeanPooledSherlAdapter
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import Stream
from vlkit.errors import UserError


def aggregator(hidden: int, eps: float = 1e-6, bias: float = 1.0) -> RedundancyAggregator:
    """An aggregator whose every score is ``bias``, so that redundancy alone decides."""
    module = RedundancyAggregator(hidden, eps).double()
    nn.init.zeros_(module.score.weight)
    nn.init.constant_(module.score.bias, bias)
    return module


def test_equal_candidates_share_one_vote() -> None:
    a, b, c = torch.eye(3, dtype=torch.float64)
    weights = aggregator(3).weights(torch.ones(3, dtype=torch.float64), torch.stack([a, a, b, -c]))

    torch.testing.assert_close(weights, torch.tensor([1, 1, 2, 2]).double() / 6, rtol=1e-5, atol=0)


def test_opposite_candidates_are_not_redundant() -> None:
    a = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    weights = aggregator(3).weights(a, torch.stack([a, -a, 5 * a]))

    torch.testing.assert_close(weights, torch.tensor([1, 2, 1]).double() / 4, rtol=1e-5, atol=0)


def naive_aggregate(module: RedundancyAggregator, guide: Tensor, candidates: Tensor) -> Tensor:
    """The published operator for one token, written out: guide [H], candidates [K, H] -> [H]."""
    units = [c / (c.square().sum().sqrt() + module.eps) for c in candidates]
    shares = []
    for u, c in zip(units, candidates, strict=True):
        redundancy = sum(torch.relu((u * v).sum()) for v in units)
        score = ((c * guide) * module.score.weight[0]).sum() + module.score.bias[0]
        shares.append(torch.relu(score) / redundancy)
    total = sum(shares) + module.eps
    return sum(share / total * c for share, c in zip(shares, candidates, strict=True)) + guide


@pytest.mark.parametrize("candidates", [1, 2, 5])
@pytest.mark.parametrize("eps", [1e-6, 1e-8])
def test_aggregation_equals_the_published_formula(candidates: int, eps: float) -> None:
    torch.manual_seed(0)
    module = RedundancyAggregator(8, eps).double()
    guide = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    stack = torch.randn(2, 3, candidates, 8, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(2, 3, 8, dtype=torch.float64)
    leaves = (guide, stack, *module.parameters())

    got = module(guide, stack)
    rows = [[naive_aggregate(module, guide[b, n], stack[b, n]) for n in range(3)] for b in range(2)]
    expected = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((got * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_dead_scores_leave_the_guide() -> None:
    torch.manual_seed(0)
    module = aggregator(4, bias=-1.0)
    guide = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    candidates = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    out = module(guide, candidates)
    out.sum().backward()

    assert torch.equal(out, guide)
    assert torch.equal(module.weights(guide, candidates), torch.zeros(3, 5, dtype=torch.float64))
    assert module.score.weight.grad.count_nonzero() == 0
    assert torch.equal(guide.grad, torch.ones_like(guide))
    assert torch.equal(candidates.grad, torch.zeros_like(candidates))


@pytest.mark.parametrize("zeros", ["one candidate", "all candidates", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_features_stay_finite(zeros: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = RedundancyAggregator(4, 1e-6).to(dtype)
    nn.init.ones_(module.score.bias)
    guide, candidates = torch.randn(2, 4, dtype=dtype), torch.randn(2, 3, 4, dtype=dtype)
    candidates[0, 0 if zeros == "one candidate" else slice(None)] = 0
    if zeros == "everything":
        guide[0] = 0
    guide.requires_grad_()
    candidates.requires_grad_()
    out = module(guide, candidates)
    out.sum().backward()

    assert out.isfinite().all()
    for leaf in (guide, candidates, *module.parameters()):
        assert leaf.grad.isfinite().all()
    alone = module(guide[1], candidates[1])
    torch.testing.assert_close(out[1], alone)  # a zero token leaves the others as they are


@pytest.mark.parametrize("flavour", ["text", "gated", "mdetr", "conv", "pooled"])
def test_zero_taps_stay_finite(flavour: str) -> None:
    """A gated block with its initial zero biases makes zero candidates of a zero token: 0 / 0 in the plain formula."""
    torch.manual_seed(0)
    shape = (2, 4, 4, 4) if flavour == "conv" else (2, 5, 8)
    width = shape[1] if flavour == "conv" else shape[-1]
    hidden = torch.randn(shape)
    hidden[0] = 0
    hidden[1, 0] = 0
    hidden.requires_grad_()
    taps = [Stream(hidden, summary=torch.zeros(2, dtype=torch.int64))] * 3
    if flavour == "pooled":
        block: nn.Module = LeanPooledSherlAdapter((width,) * 3, 6, 6, (0, 1, 2))
        last = torch.zeros(2, 6)
    elif flavour == "conv":
        block, last = ConvSherlAdapter((width,) * 3, width, 6, (0, 1, 2)), torch.zeros(shape)
    else:
        block, last = SherlAdapter((width,) * 3, width, 6, (0, 1, 2), flavour=flavour), torch.zeros(shape)
    out = block(taps, last)
    out.square().sum().backward()

    assert out.isfinite().all() and hidden.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


both_implementations = pytest.mark.parametrize("pooled", [PooledSherlAdapter, LeanPooledSherlAdapter])


def naive_pooled(block: PooledSherlAdapter, taps: list[Stream], last: Tensor) -> Tensor:
    """The published pooled block as it is written: every token is projected before it is weighed."""
    guide = block.guide_reducer(torch.relu(last)).unsqueeze(1)  # [B, 1, H]
    pooled = []
    for i, tap in enumerate(taps):
        tokens = block.reducers[i](torch.relu(tap.hidden))  # [B, N, H]
        score = block.token_scores[i](guide * tokens).squeeze(-1)
        if tap.mask is not None:
            score = score * tap.mask
        weight = torch.relu(score)
        weight = weight / (weight.abs().sum(1, keepdim=True) + 1e-6)
        base = tokens[torch.arange(len(tokens)), tap.summary]
        if block.base_gate is not None:
            base = torch.sigmoid(block.base_gate[i] / 0.1) * base
        pooled.append((weight.unsqueeze(-1) * tokens).sum(1) + base)
    rows = [naive_aggregate(block.aggregator, guide[b, 0], torch.stack(pooled, 1)[b]) for b in range(len(last))]
    return block.head.proj(torch.relu(torch.stack(rows))) + last


@both_implementations
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_pooled_form_equals_the_published_one(pooled: type[PooledSherlAdapter], masked: bool, gated: bool) -> None:
    torch.manual_seed(0)
    block = pooled((10, 10, 10, 10), 8, 6, (0, 1, 2, 3), base_gate=gated).double()
    nn.init.normal_(block.token_scores[0].bias)
    if gated:
        nn.init.normal_(block.base_gate, std=0.1)
    lengths = torch.tensor([3, 7, 5])
    mask = torch.arange(7) < lengths.unsqueeze(1) if masked else None
    hidden = [torch.randn(3, 7, 10, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    last = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(3, 8, dtype=torch.float64)
    taps = [Stream(h, mask, lengths - 1) for h in hidden]
    leaves = (*hidden, last, *block.parameters())

    got, expected = block(taps, last), naive_pooled(block, taps, last)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    mine = torch.autograd.grad((got * probe).sum(), leaves)
    theirs = torch.autograd.grad((expected * probe).sum(), leaves)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if masked:  # what lies behind a text's end has no say
        assert all(h[0, 3:].count_nonzero() == 0 for h in mine[:4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [1.0, 30.0])
def test_mixed_precision_stays_finite(dtype: torch.dtype, magnitude: float) -> None:
    """Residual streams of deep towers are large: the products of reduced taps must not overflow half precision."""
    torch.manual_seed(0)
    summary = torch.zeros(2, dtype=torch.int64)
    taps = [Stream(magnitude * torch.randn(2, 5, 64), summary=summary) for _ in range(4)]
    pooled = LeanPooledSherlAdapter((64,) * 4, 64, 256, (0, 1, 2, 3))
    tokens = [SherlAdapter((64,) * 4, 64, 256, (0, 1, 2, 3), flavour=flavour) for flavour in ("text", "gated", "mdetr")]
    for block, last in [(pooled, torch.randn(2, 64)), *((block, torch.randn(2, 5, 64)) for block in tokens)]:
        block.eval()
        with torch.autocast("cpu", dtype=dtype):
            out = block(taps, last)
        out.float().square().mean().backward()
        assert out.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())
        exact = block(taps, last)
        assert (out.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_conv_reducer_adds_both_poolings() -> None:
    reducer = ConvReducer(2, 3)
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.0, 0.0], [0.0, 8.0]]]])

    assert torch.equal(reducer.pool(x, (1, 1)), torch.tensor([[[[7.0 + 4.0]], [[8.0 + 2.0]]]]))
    assert torch.equal(reducer.pool(x, (2, 2)), 2 * x)


def test_late_gate() -> None:
    side, last = torch.ones(2), torch.full((2,), 10.0)
    published, identity = LateGate(), LateGate(offset=1.0)

    assert torch.equal(published(side, last), side)
    assert torch.equal(identity(side, last), side + last)
    published(side, last).sum().backward()
    assert published.gamma.grad.item() == pytest.approx(20 / 0.1)  # temperature 0.1: ten times the gradient


def test_a_zeroed_head_can_learn() -> None:
    for head in (LinearHead(4, 6), LinearHead(4, 6, norm_eps=1e-12)):
        head.zero()
        x = torch.randn(3, 4, requires_grad=True)
        out = head(x)
        (out * torch.randn(3, 6)).sum().backward()
        assert out.count_nonzero() == 0
        assert any(p.grad is not None and p.grad.count_nonzero() for p in head.parameters())
        assert x.grad.isfinite().all()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("count", "widths", "width", "hidden", "flavour"),
    [
        (5_133_058, (768,) * 12, 768, 512, "text"),
        (7_387_778, (768,) * 12, 768, 768 // 2, "gated"),
        (2_809_538, (768,) * 12, 768, 768 // 4, "gated"),
        (1_183_970, (768,) * 12, 768, 768 // 8, "gated"),
        (232_450, (256,) * 4, 256, 128, "mdetr"),
    ],
)
def test_published_parameter_counts(count: int, widths: tuple[int, ...], width: int, hidden: int, flavour: str) -> None:
    with torch.device("meta"):
        block = SherlAdapter(widths, width, hidden, tuple(range(len(widths))), flavour=flavour)
    assert parameters(block) == count


def test_published_parameter_count_of_the_convolutional_block() -> None:
    with torch.device("meta"):
        block = ConvSherlAdapter((256, 512, 1024, 2048), 2048, 512, (0, 1, 2, 3))
    assert parameters(block) == 3_027_458


@pytest.mark.parametrize(("count", "width"), [(5_650_971, 768), (3_947_035, 512)])
def test_published_parameter_counts_of_the_pooled_block(count: int, width: int) -> None:
    with torch.device("meta"):
        gated = PooledSherlAdapter((width,) * 13, 512, 512, tuple(range(13)), base_gate=True)
        plain = PooledSherlAdapter((width,) * 13, 512, 512, tuple(range(13)))
    assert parameters(gated) == count
    assert parameters(plain) == count - 13


def test_published_initial_weights() -> None:
    torch.manual_seed(0)
    gated = SherlAdapter((64,) * 4, 64, 64, (0, 1, 2, 3), flavour="gated")
    mdetr = SherlAdapter((64,) * 4, 64, 64, (0, 1, 2, 3), flavour="mdetr")
    pooled = PooledSherlAdapter((64,) * 4, 64, 64, (0, 1, 2, 3), base_gate=True)

    for module in gated.modules():
        if isinstance(module, nn.Linear) and module.out_features > 1:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias.count_nonzero() == 0
    assert mdetr.head.proj.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.1)  # Xavier
    assert torch.equal(pooled.base_gate, torch.ones(4))


def test_importer_refuses_what_it_does_not_know() -> None:
    block = SherlAdapter((8,) * 3, 8, 4, (0, 1, 2), flavour="mdetr")
    names = {to_upstream("sherl/mdetr", name): tensor for name, tensor in block.state_dict().items()}
    wrapped = {f"module.transformer.encoder.side_block.{name}": tensor for name, tensor in names.items()}
    wrapped["module.transformer.encoder.layers.0.linear1.weight"] = torch.zeros(1)
    found = strip_prefix(wrapped, "transformer.encoder.side_block.")

    assert None not in names and found.keys() == names.keys()
    block.load_state_dict(import_published("sherl/mdetr", found))
    with pytest.raises(UserError, match="published sherl/gated weights: unknown names"):
        import_published("sherl/gated", found)
    with pytest.raises(UserError, match=r"unknown names transformer\.encoder\.layers"):
        import_published("sherl/mdetr", {**found, "transformer.encoder.layers.0.linear1.weight": torch.zeros(1)})
