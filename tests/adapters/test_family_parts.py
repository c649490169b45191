"""What UniPT, LST, VQT and DTL stand on: blocks read by queries, narrow blocks, pruning, published sizes and names."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import timm
import torch
from torch import Tensor, nn
from transformers import M2M100Config
from transformers.models.m2m_100.modeling_m2m_100 import M2M100EncoderLayer

from helpers import tiny
from helpers.towers import TOWERS, build, prepared, train
from vlkit.adapters import ADAPTERS
from vlkit.adapters.dtl import DtlAdapter, DtlOptions
from vlkit.adapters.lst.ladder import Rung
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.lst.pruning import fisher, magnitude, prune_
from vlkit.adapters.lst.t5 import LstT5, LstT5Decoder, LstT5Encoder
from vlkit.adapters.published.names import drop_idle_gates, import_published, to_upstream
from vlkit.adapters.unipt.blocks import GuidedPool, attend
from vlkit.adapters.unipt.options import UniptOptions
from vlkit.adapters.unipt.pooled import PooledUniptAdapter
from vlkit.adapters.unipt.tokens import UniptAdapter
from vlkit.adapters.vqt import VqtOptions
from vlkit.encoders.blocks.anatomy import Opaque, anatomy_of, ask
from vlkit.encoders.blocks.narrow import NarrowBlocks
from vlkit.encoders.stage import stage_hf, stage_t5_decoder, stage_vision
from vlkit.encoders.staged import Stream
from vlkit.errors import UserError

TRANSFORMERS = ("vit", "timm", "clip_text", "bert", "t5")


@pytest.mark.parametrize("tower", ["vit", "timm", "bert", "t5"])
def test_a_query_equal_to_a_token_becomes_what_the_token_becomes(tower: str) -> None:
    encoder = TOWERS[tower][0]().double()
    if tower == "t5":  # a query has no place in the sequence, so no position bias
        nn.init.zeros_(encoder.transformer_block(0).layer[0].SelfAttention.relative_attention_bias.weight)
    x = TOWERS[tower][1]()
    with torch.no_grad():
        stream = encoder.embed(x.double() if x.is_floating_point() else x)
        for i in range(2):
            found, after = encoder.query(i, stream, stream.hidden), encoder.block(i, stream)
            real = slice(None) if stream.mask is None else stream.mask
            torch.testing.assert_close(found[real], after.hidden[real], rtol=1e-9, atol=1e-9)
            stream = after


def test_a_query_in_a_causal_tower_sees_the_whole_text() -> None:
    encoder, ids = TOWERS["clip_text"][0]().double(), TOWERS["clip_text"][1]()
    rows = torch.arange(len(ids))
    with torch.no_grad():
        stream = encoder.embed(ids)
        found = encoder.query(0, stream, stream.hidden[rows, stream.summary].unsqueeze(1))
        after = encoder.block(0, stream).hidden[rows, stream.summary]
    torch.testing.assert_close(found[:, 0], after, rtol=1e-9, atol=1e-9)


def test_queries_leave_the_sequence_alone_and_keep_it_once() -> None:
    encoder = prepared("vit")
    with torch.no_grad():
        stream = encoder.embed(tiny.images(3))
    queries = torch.randn(2, 32, requires_grad=True)
    sizes: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.update({t.untyped_storage().data_ptr(): t.numel()}) or t, lambda t: t
    ):
        encoder.query(0, stream, queries)
    tokens = stream.hidden.numel()
    assert sum(size == tokens for size in sizes.values()) == 1


@pytest.mark.parametrize("tower", TRANSFORMERS)
def test_narrow_blocks_of_full_width_are_the_tower_itself(tower: str) -> None:
    encoder, x = TOWERS[tower][0](), TOWERS[tower][1]()
    blocks = encoder.narrow(tuple(range(encoder.depth)), 1).eval()
    units = prune_(blocks, encoder)
    assert torch.equal(units, torch.arange(encoder.widths[0]))
    with torch.no_grad():
        stream = first = encoder.embed(x)
        for i in range(encoder.depth):
            stream = encoder.block(i, stream)
        hidden, arguments = first.hidden, blocks.start(stream.extras)
        for i in range(encoder.depth):
            hidden, arguments = blocks.run(i, hidden, arguments)
    torch.testing.assert_close(hidden, stream.hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tower", TRANSFORMERS)
def test_pruning_follows_the_units(tower: str) -> None:
    """With importance on chosen units alone, exactly these weights are copied."""
    encoder = prepared(tower)
    importance = {name: torch.zeros_like(w) for name, w in encoder.model.named_parameters()}
    chosen = torch.arange(1, encoder.widths[0], 2)
    names = {id(w): name for name, w in encoder.model.named_parameters()}
    for name, weight in encoder.model.named_parameters():
        importance[name] += 1e-6 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(0))
    for module in encoder.model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == encoder.widths[0]:
            importance[names[id(module.weight)]][:, chosen] += 1
        if isinstance(module, nn.Conv2d):
            importance[names[id(module.weight)]][chosen] += 1
    blocks = encoder.narrow((0, 1), 2)
    keep = anatomy_of(encoder.transformer_block(0))
    prune_(blocks, encoder, importance)
    small = anatomy_of(blocks["0"])

    columns = keep.attention.query.weight[:, chosen]
    for row in small.attention.query.weight:
        assert (columns == row).all(1).any()
    if keep.norm_first:
        assert torch.equal(small.attention.norm.weight, keep.attention.norm.weight[chosen])
    assert len(small.expand[0].weight) * 2 == len(keep.expand[0].weight)


def test_fisher_sums_squared_gradients() -> None:
    encoder, x = TOWERS["vit"][0](), tiny.images(2)
    found = fisher(encoder, (encoder(x[i : i + 1]).square().sum() for i in range(2)))
    weight = encoder.transformer_block(1).mlp.c_fc.weight
    expected = sum(torch.autograd.grad(encoder(x[i : i + 1]).square().sum(), weight)[0].square() for i in range(2))
    name = next(name for name, w in encoder.model.named_parameters() if w is weight)

    torch.testing.assert_close(found[name], expected)
    blocks = [encoder.narrow((0,), 2) for _ in range(2)]
    prune_(blocks[0], encoder, found)
    prune_(blocks[1], encoder, magnitude(encoder))
    assert not torch.equal(blocks[0]["0"].mlp.c_fc.weight, blocks[1]["0"].mlp.c_fc.weight)


def test_gates() -> None:
    side, projected = torch.ones(1, 3, 2), torch.full((1, 2, 2), 3.0)
    learned, plain = Rung(4, 2), Rung(4, 2, gate="none")
    mixed = learned.mix(side, projected)
    assert torch.equal(mixed[0, :, 0], torch.tensor([2.0, 2.0, 0.5]))  # a row without projection is halved
    mixed.sum().backward()
    assert learned.gate.grad.item() == pytest.approx(0.25 / 0.1 * (2 * 2 * (1 - 3) + 2 * 1))
    assert torch.equal(plain.mix(side, projected)[0, :, 0], torch.tensor([4.0, 4.0, 1.0]))

    linear, inverse = Rung(4, 2, gate="linear", span=4), Rung(4, 2, gate="inverse", span=2)
    shares = []
    for step in range(6):
        for rung in (linear, inverse):
            rung.at_step(step)
        shares.append((float(linear._mu()), float(inverse._mu())))
    assert [a for a, _ in shares] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9, 0.9])
    assert [b for _, b in shares] == pytest.approx([0.9, 2 / 3, 1 / 2, 2 / 5, 1 / 3, 2 / 7])
    assert float(linear.eval()._mu()) == float(linear._mu()) == pytest.approx(0.9)


def t5_model(reduction: int = 4, **options: object) -> LstT5:
    t5 = tiny.tiny_t5()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = LstT5Encoder(stage_hf(t5), reduction=reduction, **options)
        decoder = LstT5Decoder(stage_t5_decoder(t5), reduction=reduction, **options)
        return LstT5(encoder, decoder).eval()


def answer() -> Tensor:
    return nn.functional.pad(tiny.padded_ids((2, 3, 4), width=4, seed=1), (1, 0))[:, :4]  # start token first


@pytest.mark.parametrize("visual", [False, True])
def test_t5_side_networks_train_alone(visual: bool) -> None:
    model, ids = t5_model(keep=(1, 2)), tiny.padded_ids((5, 9, 12))
    features = torch.randn(3, 4, 32) if visual else None
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        base = tiny.tiny_t5()(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=answer()).logits
        torch.testing.assert_close(model(ids, answer(), features), base, rtol=1e-5, atol=1e-5)
    optimizer, unused = torch.optim.AdamW(trained.values(), lr=0.01), set(trained)
    for _ in range(2):
        logits = model.train()(ids, answer(), features)
        nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(12) % 7).backward()
        unused -= {n for n, p in trained.items() if p.grad is not None and p.grad.count_nonzero()}
        optimizer.step()
        optimizer.zero_grad()

    # With visual tokens the text's positions are those of the text alone.
    assert unused == set()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    memory = model.eval().encoder(ids, features)
    assert memory.frozen.shape == (3, 12, 32) and memory.side.shape == (3, 16 if visual else 12, 8)
    other = model.decoder(answer(), type(memory)(memory.frozen, torch.zeros_like(memory.side), memory.mask))[0]
    assert not torch.allclose(other, model.decoder(answer(), memory)[0])


def test_t5_padding_changes_nothing_beside_images() -> None:
    model, ids, features = t5_model(), tiny.padded_ids((5, 12)), torch.randn(2, 4, 32)
    together = model.encoder(ids, features).side
    alone = model.encoder(ids[:1, :5], features[:1]).side
    torch.testing.assert_close(together[:1, :5], alone[:, :5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together[:1, 12:], alone[:, 5:], rtol=1e-5, atol=1e-5)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        text = UniptAdapter((768,) * 13, 1024, 512, tuple(range(13)))
        conv = UniptAdapter((256, 512, 1024, 2048), 1024, 512, (0, 1, 2, 3), "conv")
        vision = PooledUniptAdapter((768,) * 13, 512, 512, tuple(range(13)))
        words = PooledUniptAdapter((512,) * 13, 512, 512, tuple(range(13)))
    assert [parameters(module) for module in (text, conv, vision, words)] == [5921281, 6433537, 5644289, 3940353]


def test_interaction_keeps_each_token_beside_what_it_found() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])

    plain = attend(tokens, tokens, mask, 0.0, identity=False)
    assert torch.equal(plain, torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]]))  # the padded token is not found
    assert torch.equal(attend(tokens, tokens, mask, 0.0, identity=True), plain + tokens)
    assert torch.equal(attend(-tokens, tokens, mask, 1e-8, identity=True), tokens)  # nothing found: zeros, no NaN


def test_guided_pool_of_a_dead_guide_is_the_mean() -> None:
    pool = GuidedPool(3, 5, 4).double().eval()
    nn.init.zeros_(pool.guide.weight)
    nn.init.zeros_(pool.guide.bias)
    x, deepest = torch.randn(2, 3, 8, 4, dtype=torch.float64), torch.randn(2, 5, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(pool._pool(x, deepest), nn.functional.avg_pool2d(x, 2))
    nn.init.ones_(pool.guide.bias)
    positive = x.abs() + 1
    weights = pool._pool(torch.ones_like(positive), deepest)
    torch.testing.assert_close(weights, torch.full_like(weights, 2.0), rtol=1e-6, atol=0)  # mean and guided mean
    with pytest.raises(ValueError, match="cannot be pooled"):
        pool(torch.randn(2, 3, 9, 4).double(), deepest)


@pytest.mark.parametrize("kernel", [0, 3, 4])
def test_dtl_writes_what_the_formula_says(kernel: int) -> None:
    torch.manual_seed(0)
    adapter = DtlAdapter((6,) * 4, 2, rank=2, kernel=kernel, grid_of=lambda stream: (2, 3)).double()
    for read in adapter.reads.values():
        nn.init.normal_(read.up.weight)
    maps = [nn.Linear(6, 6).double() for _ in range(3)]
    x = torch.randn(2, 7, 6, dtype=torch.float64)  # one class token, 2 x 3 cells

    states, z = [x], torch.zeros_like(x)
    for i in range(3):
        read = adapter.reads[str(i)]
        z = z + states[-1] @ read.down.weight.T @ read.up.weight.T
        state = maps[i](states[-1])
        if i >= 1:
            u = z * torch.sigmoid(100 * z)
            if kernel:
                cells = u[:, 1:].transpose(1, 2).reshape(2, 6, 2, 3)
                before, after = (kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2  # the extra column is right and below
                padded = nn.functional.pad(cells, (before, after, before, after))
                cells = nn.functional.conv2d(padded, adapter.fusions["0"].weight, groups=6)
                u = torch.cat([u[:, :1], cells.flatten(2).transpose(1, 2)], dim=1)
            state = state + u
        states.append(state)

    stream = Stream(maps[0](x))
    stream = adapter.merge([adapter.reduce(0, Stream(x))], stream.hidden, stream)
    for i in (1, 2):
        stream = adapter.late_block(i, stream, lambda s, i=i: s.replace(hidden=maps[i](s.hidden)))
    torch.testing.assert_close(stream.hidden, states[-1], rtol=1e-10, atol=1e-10)


def test_dtl_starts_again_where_the_width_changes() -> None:
    adapter = DtlAdapter((4, 4, 8, 8, 8), 2)
    assert set(adapter.reads) == {"2", "3"} and adapter.layers == ()
    assert set(DtlAdapter((4, 4, 8, 8, 8), 4).reads) == {"0", "2", "3"}


def test_importer_ignores_gates_of_dropped_layers() -> None:
    ladder = LstOptions(keep=(1,)).build(tower_t5()).adapter.ladder
    names = {to_upstream("lst/t5", name): tensor for name, tensor in ladder.state_dict().items()}
    assert None not in names
    names |= {f"side_gate_params.{i}": torch.zeros(1) for i in range(3)}
    ladder.load_state_dict(import_published("lst/t5", drop_idle_gates(names)))


def tower_t5() -> object:
    return TOWERS["t5"][0]()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (lambda: UniptOptions(taps=(2,), handoff="tokens"), "--adapter.taps [2]: UniPT compares taps"),
        (lambda: UniptOptions(taps=(0, 9)), "--adapter.taps [0, 9]: give ascending depths from 0..4"),
        (lambda: UniptOptions(reduction=99), "--adapter.reduction 99"),
        (lambda: UniptOptions(handoff="pooled", flavour="joint"), "--adapter.flavour: belongs to"),
        (lambda: LstOptions(reduction=3), "--adapter.reduction 3: does not divide the width 32"),
        (lambda: LstOptions(reduction=32), "--adapter.reduction 32: width 1 is not divisible by 2 heads"),
        (lambda: LstOptions(keep=(4,)), "--adapter.keep [4]: give ascending block numbers from 0..3"),
        (lambda: LstOptions(keep=()), "--adapter.keep []"),
        (lambda: LstOptions(gate_steps=0), "--adapter.gate_steps 0"),
        (lambda: DtlOptions(late=5), "--adapter.late 5: this tower has 4 blocks; give 1..4"),
        (lambda: DtlOptions(collect=(3,)), "--adapter.collect [3]: no block before block 2"),
        (lambda: DtlOptions(rank=0), "--adapter.rank 0"),
        (lambda: DtlOptions(beta=0.0), "--adapter.beta 0"),
        (lambda: VqtOptions(queries=0), "--adapter.queries 0"),
        (lambda: VqtOptions(layers=(7,)), "--adapter.layers [7]"),
        (lambda: VqtOptions(dropout=1.0), "--adapter.dropout 1.0"),
    ],
)
def test_wrong_options(options: Callable, says: str) -> None:
    with pytest.raises(UserError) as raised:
        build(options(), "vit")
    assert str(raised.value).startswith(says) and "\n" not in str(raised.value)


@pytest.mark.parametrize("tower", ["vit", "t5"])
@pytest.mark.parametrize("kind", ["unipt", "lst", "dtl", "vqt", "synqt", "side_attention"])
def test_half_precision_stays_finite_and_close(kind: str, tower: str) -> None:
    model, x = build(ADAPTERS[kind](), tower), TOWERS[tower][1]()
    train(model, x, "pooled")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x).pooled
    out.float().square().mean().backward()
    exact = model(x).pooled

    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert (out.float() - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_blocks_of_other_libraries_and_kinds() -> None:
    config = M2M100Config(
        d_model=16, encoder_attention_heads=2, encoder_ffn_dim=32, encoder_layers=1, attn_implementation="eager"
    )
    nllb = M2M100EncoderLayer(config).eval()
    narrow = NarrowBlocks(lambda i: nllb, (0,), 2)
    assert anatomy_of(nllb).attention.heads == anatomy_of(narrow["0"]).attention.heads == 2
    assert narrow["0"].fc1.weight.shape == (16, 8) and narrow.final_norm().normalized_shape == (8,)
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(ask(anatomy_of(nllb), x, None, x), nllb(x, None), rtol=1e-5, atol=1e-5)

    rotary = timm.create_model("test_vit", embed_dim=32, num_heads=2, depth=1, qk_norm=True).blocks[0]
    with pytest.raises(Opaque, match=r"block Block: its attention is not plain softmax attention$"):
        anatomy_of(rotary)
    assert NarrowBlocks(lambda i: rotary, (0,), 2)["0"].ln_1.normalized_shape == (16,)


def test_lst_on_blocks_that_cannot_be_taken_apart() -> None:
    clip = tiny.tiny_timm_clip()
    clip.visual.trunk.blocks[1] = timm.create_model("test_vit", qk_norm=True).blocks[0]
    with pytest.raises(UserError) as raised:
        LstOptions(start="magnitude").build(stage_vision(deepcopy(clip)))
    assert str(raised.value) == (
        "--adapter.start magnitude: block Block: its attention is not plain softmax attention; "
        "use --adapter.start random"
    )
    LstOptions().build(stage_vision(deepcopy(clip)))
    with pytest.raises(UserError, match=r"--adapter.kind vqt: block Block: its attention .*; use sherl, unipt, dtl"):
        VqtOptions().build(stage_vision(clip))
