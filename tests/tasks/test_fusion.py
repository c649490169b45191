"""The fusion transformer: positions of image cells, masked text, shared images, memory, resized towers."""

from __future__ import annotations

import pytest
import torch
from open_clip import factory
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import tiny
from vlkit.adapters.base import Encoded
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import LoraOptions
from vlkit.encoders.load import load_base
from vlkit.encoders.stage import stage_hf, stage_vision
from vlkit.errors import UserError
from vlkit.memory import saved_bytes
from vlkit.tasks.fusion import Fusion, FusionOptions, cell_codes
from vlkit.tasks.shared_cells import products

SMALL = {"width": 24, "layers": 2, "heads": 2}


def encoders(options=None, vision=None):
    options = options or LinearOptions()
    image = options.build(vision or stage_vision(tiny.tiny_clip()), "tokens")
    return image, options.build(stage_hf(tiny.tiny_t5()), "tokens")


def fusion_of(image, text, queries: int = 1, **changes) -> Fusion:
    torch.manual_seed(0)
    return Fusion(image.base, text.base, FusionOptions(**{**SMALL, **changes}), queries).eval()


def encode(image, text, pixels: Tensor, ids: Tensor) -> tuple[Encoded, Encoded]:
    return image(pixels), text(ids)


@pytest.mark.parametrize("update_image", [False, True])
def test_states_of_every_layer_and_gradients_to_every_weight(update_image: bool):
    image, text = encoders(SherlOptions())
    fusion = fusion_of(image, text, 3, update_image=update_image, dropout=0.0, neck=1).train()
    states = fusion(*encode(image, text, tiny.images(2), tiny.padded_ids()))
    assert [tuple(state.shape) for state in states] == [(2, 3, 24)] * 2
    states[-1].square().mul(torch.arange(1.0, 25)).sum().backward()
    unused = ("to_seen.weight", "to_seen.bias", "image_norm.weight", "image_norm.bias")
    idle = [name for name, p in fusion.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    if update_image:
        idle = [name for name in idle if not name.endswith(unused)]
    assert idle == []
    assert all(p.grad is not None for p in image.adapter.head.parameters())


@pytest.mark.parametrize("update_image", [False, True])
def test_padding_changes_nothing(update_image: bool):
    image, text = encoders()
    fusion = fusion_of(image, text, update_image=update_image)
    ids = tiny.padded_ids((5, 9))
    both = fusion(*encode(image, text, tiny.images(2), ids))[-1]
    short = fusion(*encode(image, text, tiny.images(2)[:1], ids[:1, :5]))[-1]
    torch.testing.assert_close(both[:1], short, atol=1e-5, rtol=1e-5)


def test_shared_images_equal_repeated_ones():
    image, text = encoders()
    fusion = fusion_of(image, text)
    pixels, ids, owner = tiny.images(2), tiny.padded_ids((5, 9, 4)), torch.tensor([1, 0, 1])
    shared = fusion(image(pixels), text(ids), owner)[-1]
    torch.testing.assert_close(shared, fusion(image(pixels[owner]), text(ids))[-1])


def test_matching_starts_from_the_similarities_of_the_joint_space():
    base, options = load_base("tiny"), LinearOptions()
    image, text = options.build(base.image, "tokens"), options.build(base.text, "tokens")
    ids, owner = base.tokenize(["a red house", "two blue stars near a tree", "a cat"])[:, :12], torch.tensor([1, 0, 1])
    seen, words = image(torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))), text(ids)
    torch.testing.assert_close(seen.joint[:, 0], seen.pooled)  # the class token
    fusion = fusion_of(image, text, 2, match=True)
    assert fusion.match is not None
    similar = fusion.match.similarities(seen, words, owner, 2)
    assert similar.shape == (3, 2 + words.tokens.shape[1], 65)
    expected = torch.cosine_similarity(words.pooled, seen.joint[owner, 7], dim=-1)
    torch.testing.assert_close(similar[:, 0, 7], expected)
    mask = words.mask[:, None, None] if words.mask is not None else torch.ones(3, 1, 1, 12, dtype=torch.bool)
    mask = torch.nn.functional.pad(mask, (2, 65), value=True)
    bias = fusion.match.bias(0, similar, mask, torch.float32)
    torch.testing.assert_close(bias[1, 1, 0, -65:], fusion.match.gain[0, 1] * similar[1, 0])
    assert (bias.isinf() == ~mask.expand_as(bias)).all()
    fusion.train()(seen, words, owner)[-1].square().mul(torch.arange(1.0, 25)).sum().backward()
    idle = [n for n, p in fusion.match.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_towers_without_a_joint_space_do_not_match():
    assert fusion_of(*encoders(), match=True).match is None


def test_where_a_cell_lies_matters_and_image_and_text_do():
    image, text = encoders()
    fusion = fusion_of(image, text)
    pixels, ids = tiny.images(2), tiny.padded_ids((5, 5))
    encoded, words = encode(image, text, pixels, ids)
    state = fusion(encoded, words)[-1]

    class Turned:
        """The same tokens, cells in reverse order."""

        grid = encoded.grid
        tokens = torch.cat([encoded.tokens[:, :1], encoded.tokens[:, 1:].flip(1)], 1)

    assert not torch.allclose(state, fusion(Turned(), words)[-1], atol=1e-4)
    assert not torch.allclose(state, fusion(image(pixels.flip(0)), words)[-1], atol=1e-4)
    assert not torch.allclose(state, fusion(encoded, text(ids.flip(0)))[-1], atol=1e-4)


def test_codes_of_cells_are_the_same_at_every_resolution():
    codes = cell_codes(2, 4)
    assert codes[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75] * 2 and codes[:, 1].tolist() == [-0.5] * 4 + [0.5] * 4
    fine = cell_codes(6, 12).unflatten(0, (6, 12))
    torch.testing.assert_close(fine[1::3, 1::3].flatten(0, 1), codes)  # centres of 3 x 3 blocks
    assert len({tuple(code) for code in cell_codes(8, 8).tolist()}) == 64


@pytest.mark.parametrize(
    ("clip", "size", "grid", "others"),
    [
        (tiny.tiny_clip, 32, (4, 4), 1),
        (tiny.tiny_resnet_clip, 64, (2, 2), 0),
        (tiny.tiny_timm_clip, 160, (10, 10), 1),
        (lambda: tiny.tiny_timm_clip(name="test_convnext"), 160, (5, 5), 0),
    ],
)
def test_every_kind_of_tower_says_its_grid(clip, size: int, grid: tuple[int, int], others: int):
    image, text = encoders(vision=stage_vision(clip()))
    encoded = image(tiny.images(2, size))
    assert encoded.grid == grid and encoded.tokens.shape[1] == grid[0] * grid[1] + others
    assert fusion_of(image, text)(encoded, text(tiny.padded_ids()))[-1].shape == (2, 1, 24)
    assert text(tiny.padded_ids()).grid is None


def test_a_step_keeps_little_and_less_with_checkpointing():
    image, text = encoders()
    pixels, ids = tiny.images(8), tiny.padded_ids((12,) * 8)
    kept = {}
    for name, changes in {"": {}, "checkpointing": {"checkpointing": True}, "joint": {"update_image": True}}.items():
        fusion = fusion_of(image, text, dropout=0.0, **changes).train()
        kept[name] = saved_bytes(fusion, lambda: fusion(*encode(image, text, pixels, ids))[-1].sum())  # noqa: B023
    assert kept["checkpointing"] < 0.5 * kept[""] and kept[""] < 0.75 * kept["joint"], kept


def test_checkpointing_changes_no_gradient():
    image, text = encoders()
    encoded = encode(image, text, tiny.images(2), tiny.padded_ids())
    gradients = []
    for checkpointing in (False, True):
        fusion = fusion_of(image, text, dropout=0.1, checkpointing=checkpointing).train()
        torch.manual_seed(1)
        fusion(*encoded)[-1].square().sum().backward()
        gradients.append([p.grad for p in fusion.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("match", [False, True])
def test_compressed_activations_change_no_output_and_the_gradient_little(match: bool):
    base, options = load_base("tiny"), LinearOptions()
    image, text = options.build(base.image, "tokens"), options.build(base.text, "tokens")
    encoded = encode(image, text, tiny.images(8, 96), base.tokenize(["a red house", "two stars near a tree"] * 4))
    states, gradients, kept = {}, {}, {}
    for saved in ("fp32", "int8", "int4"):
        fusion = fusion_of(image, text, width=64, match=match, saved=saved, neck=1).train()

        def step(fusion: Fusion = fusion) -> Tensor:
            torch.manual_seed(1)  # of the dropout
            with fusion.compressed():
                return fusion(*encoded)[-1]

        kept[saved] = saved_bytes(fusion, lambda: step().sum())
        states[saved] = step()
        states[saved].mul(torch.randn(64, generator=torch.Generator().manual_seed(2))).sum().backward()
        gradients[saved] = torch.cat([p.grad.flatten() for p in fusion.parameters() if p.grad is not None])
    assert torch.equal(states["int4"], states["fp32"]) and torch.equal(states["int8"], states["fp32"])
    size = gradients["fp32"].norm()
    errors = {saved: float((gradients[saved] - gradients["fp32"]).norm() / size) for saved in ("int8", "int4")}
    assert errors["int8"] < 0.01 and 0 < errors["int4"] < 0.1, errors
    assert kept["int4"] < 0.3 * kept["fp32"] and kept["int4"] < kept["int8"], kept


def test_format_of_saved_activations_follows_the_adapter():
    lora = LoraOptions(saved="int4")
    assert FusionOptions().beside(lora).saved == "int4" and FusionOptions(saved="fp32").beside(lora).saved == "fp32"
    assert FusionOptions().beside(LinearOptions()).saved == "fp32"
    assert FusionOptions(saved="int8").beside(LinearOptions()).saved == "int8"
    assert FusionOptions(checkpointing=True).beside(lora).saved == "fp32"
    with pytest.raises(UserError, match=r"--fusion\.saved int4: --fusion\.checkpointing saves no activations"):
        FusionOptions(checkpointing=True, saved="int4")


def test_options_that_do_not_fit_are_named():
    for words, options in {"heads 5": {"heads": 5}, "dropout 1.0": {"dropout": 1.0}, "layers 0": {"layers": 0}}.items():
        with pytest.raises(UserError, match=f"--fusion.{words}"):
            FusionOptions(**options)


def test_tiny_base_at_another_resolution():
    base = load_base("tiny", image_size=144)
    assert base.preprocess.size == (144, 144) and base.identity["image"]["image_size"] == 144
    assert base.identity["image"]["fingerprint"] != load_base("tiny").identity["image"]["fingerprint"]
    stream = base.image.embed(tiny.images(1, 144))
    assert base.image.grid(stream) == (12, 12) and stream.hidden.shape[1] == 145


def test_open_clip_base_at_another_resolution(monkeypatch):
    config = {"embed_dim": tiny.EMBED_DIM, "vision_cfg": tiny.VISION, "text_cfg": tiny.TEXT}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small-clip", config)
    base = load_base("small-clip", image_size=24)
    assert base.preprocess.size == (24, 24)
    assert base.image.grid(base.image.embed(tiny.images(1, 24))) == (3, 3)
    with pytest.raises(UserError, match="image size 0"):
        load_base("tiny", image_size=0)


def test_products_with_shared_cells_are_those_with_copies_of_them():
    torch.manual_seed(0)
    owner = torch.tensor([2, 0, 2, 0, 0])  # the second image has no text
    words, cells = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(3, 6, 4, dtype=torch.float64)
    words.requires_grad_(), cells.requires_grad_()
    torch.testing.assert_close(products(words, cells, owner), words @ cells[owner].transpose(1, 2))
    torch.testing.assert_close(products(words[:3], cells, None), words[:3] @ cells.transpose(1, 2))
    assert torch.autograd.gradcheck(lambda w, c: products(w, c, owner), (words, cells))
    single = words.float(), cells.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = products(*single, owner)
    mixed.sum().backward()
    torch.testing.assert_close(mixed, single[0] @ single[1][owner].transpose(1, 2))  # of float32, as without autocast
    torch.testing.assert_close(
        words.grad, cells.detach()[owner].sum(1, keepdim=True).expand_as(words), atol=1e-5, rtol=0
    )
    values = words.detach(), cells.detach(), owner
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in values]
        assert products(*fakes).shape == (5, 3, 6)
