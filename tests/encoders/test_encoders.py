"""Staged encoders: equal to the library's own forward, exact where they cut, frozen where they should be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import _build_vision_tower
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2Model,
    M2M100Config,
    MT5Config,
    MT5ForConditionalGeneration,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
)

from helpers import tiny
from vlkit.encoders.stage import stage_hf, stage_t5_decoder, stage_text, stage_vision
from vlkit.encoders.staged import StagedEncoder, Stream, freeze, run_blocks, run_early
from vlkit.encoders.towers.open_clip import run_resblock
from vlkit.encoders.towers.t5 import DecoderInput, with_memory
from vlkit.encoders.towers.timm_vision import BareTimm
from vlkit.errors import UserError

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NATIVE = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "mlp_ratio": 2.0, "output_dim": 32}
TIMM = {"embed_dim": 16, "image_size": 160}
CUSTOM_BLOCKS = {"qk_norm": True, "scale_heads": True, "scale_attn": True, "scale_attn_inner": True, "scale_fc": True}
HF_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "type_vocab_size": 1,
}
T5_SIZES = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}


def native(**changes: object) -> VisionTransformer:
    return VisionTransformer(**{**NATIVE, **changes})


def sequence_first() -> VisionTransformer:
    model = native()
    model.transformer = Transformer(width=32, layers=3, heads=2, batch_first=False)
    return model


def timm_tower(name: str, **changes: object) -> TimmModel:
    return TimmModel(name, **{**TIMM, **changes})


def bare(name: str) -> BareTimm:
    """A timm trunk outside open_clip, as a pair of encoders has it."""
    model = BareTimm(timm.create_model(name, num_classes=0))
    model.image_size = 160
    return model


def beit_tower() -> TimmModel:
    """open_clip's wrapper around a small BEiT whose blocks share one relative position bias."""
    model = timm_tower("test_vit", image_size=32)
    model.trunk = Beit(
        img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=2, num_classes=0, use_shared_rel_pos_bias=True
    )
    return model


def real_tower(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    return _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False))


VISION: dict[str, Callable[[], nn.Module]] = {
    "native": native,
    "sequence first": sequence_first,
    "average pool": lambda: native(pool_type="avg"),
    "norm after pool": lambda: native(pool_type="avg", final_ln_after_pool=True),
    "no norm before": lambda: native(no_ln_pre=True),
    "layer scale": lambda: native(ls_init_value=0.1),
    "fixed positions": lambda: native(pos_embed_type="sin_cos_2d"),
    "patch dropout": lambda: native(patch_dropout=0.5),
    "custom blocks": lambda: native(**CUSTOM_BLOCKS),
    "attentional pool": lambda: native(attentional_pool=True, attn_pooler_queries=5, output_dim=16),
    "attentional average": lambda: native(attentional_pool=True, attn_pooler_queries=5, pool_type="avg"),
    "parallel pool": lambda: native(attentional_pool="parallel", attn_pooler_queries=5),
    "cascade pool": lambda: native(attentional_pool="cascade", attn_pooler_queries=5),
    "with tokens": lambda: native(attentional_pool=True, output_tokens=True),
    "tiny resnet": lambda: tiny.tiny_resnet_clip().visual,
    "timm vit": lambda: timm_tower("test_vit", pool="token"),
    "timm vit map": lambda: timm_tower("test_vit", pool="map", proj="none"),
    "timm vit average": lambda: timm_tower("test_vit2", pool="avg", proj="mlp"),
    "timm vit registers": lambda: timm_tower("test_vit4"),
    "timm relpos": lambda: timm_tower("test_vit_relpos", image_size=160),
    "timm eva": lambda: timm_tower("eva02_tiny_patch14_224", image_size=224),
    "timm beit": lambda: beit_tower(),
    "timm convnext": lambda: timm_tower("test_convnext", pool="avg", proj=""),
    "timm convnext rot": lambda: timm_tower("test_convnext", pool="rot_attn", proj=""),
    "timm convnext abs": lambda: timm_tower("test_convnext", pool="abs_attn", proj="linear"),
    "timm resnet": lambda: timm_tower("test_resnet"),
    "timm efficientnet": lambda: timm_tower("test_efficientnet"),
    "timm efficientnet bare": lambda: bare("test_efficientnet"),
    "timm mobilenet": lambda: timm_tower("mobilenetv3_small_050", image_size=96, proj="none"),
    "timm swin": lambda: timm_tower("swin_s3_tiny_224", image_size=224),
    "RN50": lambda: real_tower("RN50"),
    "ViT-B-32-quickgelu": lambda: real_tower("ViT-B-32-quickgelu"),
    "convnext_tiny": lambda: real_tower("convnext_tiny"),
    "MobileCLIP2-S0": lambda: real_tower("MobileCLIP2-S0"),
    "PE-Core-T-16-384": lambda: real_tower("PE-Core-T-16-384"),
    "ViTamin-S": lambda: real_tower("ViTamin-S"),
}


def image_size(model: nn.Module) -> int:
    size = model.image_size
    return size if isinstance(size, int) else size[0]


def first(output: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def scattered(build: Callable[[], nn.Module]) -> nn.Module:
    """A model in eval mode whose zero- and one-initialised weights are off their initial values."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    return model


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", VISION)
def test_vision_tower_equals_the_library(name: str, frozen: bool) -> None:
    model = scattered(VISION[name])
    images = tiny.images(2, image_size(model))
    encoder = stage_vision(model)
    with torch.no_grad():
        expected = first(model(images))
        encoder = freeze(encoder) if frozen else encoder
        stream = encoder.embed(images)
        width_axis = 1 if encoder.spatial else 2
        for i in range(encoder.depth):
            assert stream.hidden.shape[width_axis] == encoder.widths[i]
            before = stream.hidden.clone()
            following = encoder.block(i, stream)
            assert torch.equal(stream.hidden, before), f"block {i} changes the tap before it"
            stream = following
        assert stream.hidden.shape[width_axis] == encoder.widths[encoder.depth]
        pooled, tokens = encoder.pool(stream), encoder.tokens(stream)
        alone = encoder(images[:1])
    assert expected.abs().max() > 1e-3
    assert pooled.shape == (2, encoder.out_dim)
    assert tokens.shape == (2, stream.hidden[0].numel() // encoder.widths[-1], encoder.token_dim)
    torch.testing.assert_close(pooled, expected.reshape(pooled.shape), **TOLERANCE)
    torch.testing.assert_close(alone, pooled[:1], rtol=1e-4, atol=1e-4)
    assert set(encoder.stages) <= set(range(encoder.depth + 1)) and encoder.stages[-1] == encoder.depth


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_frozen_blocks_pass_the_gradient_of_the_library(causal: bool, quick_gelu: bool) -> None:
    block = ResidualAttentionBlock(32, 4, act_layer=QuickGELU if quick_gelu else nn.GELU, ls_init_value=0.5).eval()
    mask = torch.full((7, 7), -torch.inf).triu(1) if causal else None
    hidden, weights = torch.randn(2, 3, 7, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for frozen in (False, True):
        block.requires_grad_(not frozen)
        x = hidden.clone().requires_grad_()
        (run_resblock(block, x, True, mask) * weights).sum().backward()
        with torch.no_grad():
            results.append((run_resblock(block, hidden, True, mask), x.grad))
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)


def test_summary_is_the_class_token_only_where_it_is_pooled() -> None:
    images = tiny.images()
    assert stage_vision(native()).embed(images).summary.tolist() == [0, 0]
    assert stage_vision(native(pool_type="avg")).embed(images).summary is None
    assert stage_vision(native(attentional_pool=True)).embed(images).summary is None
    images = tiny.images(size=160)
    assert stage_vision(timm_tower("test_vit", pool="token")).embed(images).summary.tolist() == [0, 0]
    assert stage_vision(timm_tower("test_vit", pool="map", proj="none")).embed(images).summary is None


def test_resnet_taps_are_stage_ends_and_the_whole_last_stage() -> None:
    encoder = stage_vision(tiny.tiny_resnet_clip())
    assert encoder.spatial and encoder.depth == 7
    assert encoder.stages == (1, 3, 4, 5, 6, 7)
    assert encoder.widths == (8, 32, 64, 64, 128, 256, 256, 256)
    grids = {k: stream.hidden.shape[2] for k, stream in run_early(encoder, tiny.images(size=64), encoder.stages, 7)}
    assert grids == {1: 16, 3: 8, 4: 4, 5: 2, 6: 2, 7: 2}


def test_efficientnet_is_tapped_once_a_stage() -> None:
    encoder = stage_vision(BareTimm(timm.create_model("tf_efficientnet_lite0", num_classes=0)))
    assert encoder.spatial and encoder.depth == 7 and encoder.stages == (1, 2, 3, 4, 5, 6, 7)
    assert encoder.widths == (32, 16, 24, 40, 80, 112, 192, 320)
    assert encoder.out_dim == encoder.token_dim == 1280
    stream = run_blocks(freeze(encoder), encoder.embed(tiny.images(1, 96)), 0, 7)
    assert encoder.grid(stream) == (3, 3) and encoder.tokens(stream).shape == (1, 9, 1280)


# --- text ------------------------------------------------------------------------------------------------------------


def text_tower(**changes: object) -> TextTransformer:
    settings = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 3, "output_dim": 16}
    return TextTransformer(**{**settings, **changes})


TEXT: dict[str, Callable[[], nn.Module]] = {
    "native": text_tower,
    "sequence end": lambda: text_tower(pool_type="eos", eos_id=tiny.END_OF_TEXT),
    "first": lambda: text_tower(pool_type="first", no_causal_mask=True),
    "siglip": lambda: text_tower(pool_type="last", no_causal_mask=True, proj_bias=True),
    "last causal": lambda: text_tower(pool_type="last"),
    "mobileclip": lambda: text_tower(no_causal_mask=True),
    "padding masked": lambda: text_tower(no_causal_mask=True, use_pad_mask=True),
    "coca": lambda: text_tower(embed_cls=True, output_tokens=True),
    "coca corrected": lambda: text_tower(embed_cls=True, correct_cls_mask=True),
    "no projection": lambda: text_tower(proj_type="none"),
    "custom blocks": lambda: text_tower(**CUSTOM_BLOCKS, ls_init_value=0.1),
}
TRIMMABLE = {"native", "sequence end", "padding masked", "no projection", "custom blocks"}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", TEXT)
def test_text_tower_equals_the_library(name: str, frozen: bool) -> None:
    model = scattered(TEXT[name])
    ids = tiny.clip_ids((5, 9))
    encoder = stage_text(model)
    with torch.no_grad():
        expected = first(model(ids))
        encoder = freeze(encoder) if frozen else encoder
        stream = run_blocks(encoder, encoder.embed(ids), 0, encoder.depth)
        torch.testing.assert_close(encoder.pool(stream), expected, **TOLERANCE)
        torch.testing.assert_close(encoder(ids[:1]), expected[:1], **TOLERANCE)
        trimmed = encoder.trim(ids)
        torch.testing.assert_close(encoder(trimmed), expected, **TOLERANCE)
    assert expected.shape == (2, encoder.out_dim)
    assert encoder.tokens(stream).shape == (*stream.hidden.shape[:2], encoder.token_dim)
    assert stream.mask.shape == stream.hidden.shape[:2]
    assert stream.mask[torch.arange(2), stream.summary].all(), "the pooled token counts as real"
    assert trimmed.shape[1] == (9 if name in TRIMMABLE else 12)


@pytest.mark.parametrize("custom_text", [False, True])
def test_text_half_of_a_clip_lives_without_its_vision_tower(custom_text: bool) -> None:
    model = tiny.tiny_clip(custom_text=custom_text)
    encoder = stage_text(model)
    ids = tiny.clip_ids()
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids), model.encode_text(ids), **TOLERANCE)
    mine = {id(weight) for weight in encoder.parameters()}
    assert mine and not mine & {id(weight) for weight in model.visual.parameters()}
    assert mine <= {id(weight) for weight in model.parameters()}, "weights are shared, not copied"
    assert all(weight.device.type == "cpu" for weight in encoder.parameters())
    assert encoder.causal


def test_real_tokens_end_with_the_end_of_text() -> None:
    stream = stage_text(text_tower()).embed(tiny.clip_ids((5, 9)))
    assert stream.mask.sum(dim=1).tolist() == [5, 9]
    assert stream.summary.tolist() == [4, 8]
    padded = stage_text(text_tower(pool_type="last", no_causal_mask=True), pad_id=1)
    mask = padded.real(torch.tensor([[7, 8, 1, 1]]))
    assert mask.tolist() == [[True, True, False, True]], "the position that is pooled counts as real"


def hf_tower(folder: Path, kind: str, pooler: str, proj: str | None = "linear", **sizes: object) -> HFTextEncoder:
    """open_clip's wrapper of a tiny transformers encoder, built offline from a saved configuration."""
    configs = {
        "bert": lambda: BertConfig(**HF_SIZES),
        "roberta": lambda: RobertaConfig(**HF_SIZES),
        "xlm-roberta": lambda: XLMRobertaConfig(**HF_SIZES),
        "mt5": lambda: MT5Config(**T5_SIZES, decoder_start_token_id=0),
        "m2m_100": lambda: M2M100Config(
            vocab_size=64, d_model=32, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=64, decoder_layers=1
        ),
    }
    configs[kind]().save_pretrained(folder)
    return HFTextEncoder(str(folder), output_dim=16, pooler_type=pooler, proj_type=proj, pretrained=False)


@pytest.mark.parametrize(
    ("kind", "pooler", "proj", "summary"),
    [
        ("roberta", "mean_pooler", "mlp", None),
        ("xlm-roberta", "cls_last_hidden_state_pooler", "linear", 0),
        ("bert", "cls_pooler", "linear", 0),
        ("mt5", "mean_pooler", "linear", None),
        ("m2m_100", "cls_pooler", "linear", 0),
    ],
)
def test_transformers_tower_in_open_clip(
    tmp_path: Path, kind: str, pooler: str, proj: str, summary: int | None
) -> None:
    model = scattered(lambda: hf_tower(tmp_path, kind, pooler, proj))
    ids = tiny.padded_ids((5, 9), pad_id=model.config.pad_token_id)
    encoder = stage_text(model)
    with torch.no_grad():
        expected = model(ids)
        torch.testing.assert_close(encoder(ids), expected, **TOLERANCE)
        torch.testing.assert_close(encoder(encoder.trim(ids)), expected, **TOLERANCE)
        torch.testing.assert_close(encoder(encoder.trim(ids[:1])), expected[:1], **TOLERANCE)
    stream = encoder.embed(ids)
    assert stream.mask.sum(dim=1).tolist() == [5, 9]
    assert stream.summary is None if summary is None else stream.summary.tolist() == [summary, summary]
    assert encoder.out_dim == 16 and encoder.depth == 3 and encoder.trim(ids).shape[1] == 9


@pytest.mark.parametrize("pooler", [True, False])
def test_bert_alone(pooler: bool) -> None:
    model = tiny.tiny_bert(pooler=pooler)
    ids = tiny.padded_ids((5, 9))
    encoder = stage_text(model)
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids != 0).long())
        stream = run_blocks(encoder, encoder.embed(ids), 0, encoder.depth)
        torch.testing.assert_close(encoder.tokens(stream), expected.last_hidden_state, **TOLERANCE)
        pooled = expected.pooler_output if pooler else expected.last_hidden_state[:, 0]
        torch.testing.assert_close(encoder(encoder.trim(ids)), pooled, **TOLERANCE)
    assert not encoder.causal and stream.summary.tolist() == [0, 0]


def test_roberta_alone_counts_positions_from_its_own_padding() -> None:
    model = scattered(lambda: RobertaModel(RobertaConfig(**HF_SIZES), add_pooling_layer=False))
    ids = tiny.padded_ids((5, 9), pad_id=1)
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids != 1).long()).last_hidden_state[:, 0]
        encoder = stage_text(model)
        torch.testing.assert_close(encoder(encoder.trim(ids)), expected, **TOLERANCE)


# --- T5 --------------------------------------------------------------------------------------------------------------


def t5_models() -> dict[str, Callable[[], nn.Module]]:
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return {
        "t5": tiny.tiny_t5,
        "flan": lambda: tiny.tiny_t5(**gated),
        "mt5": lambda: MT5ForConditionalGeneration(MT5Config(**T5_SIZES, **gated, decoder_start_token_id=0)),
    }


@pytest.mark.parametrize("name", t5_models())
def test_t5_encoder_and_decoder_equal_the_library(name: str) -> None:
    model = scattered(t5_models()[name])
    ids, mask, answer = t5_batch()
    encoder, decoder = stage_text(model), stage_t5_decoder(model)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask.long(), decoder_input_ids=answer)
        encoded = run_blocks(encoder, encoder.embed(ids), 0, encoder.depth)
        memory = encoder.tokens(encoded)
        torch.testing.assert_close(memory, expected.encoder_last_hidden_state, **TOLERANCE)
        stream = decoder.embed(DecoderInput(answer, memory, mask))
        stream = run_blocks(decoder, stream, 0, decoder.depth)
        logits = decoder.logits(decoder.tokens(stream))
        torch.testing.assert_close(logits, expected.logits, **TOLERANCE)
        torch.testing.assert_close(decoder.pool(stream), decoder.tokens(stream)[[0, 1], [3, 1]], **TOLERANCE)
        torch.testing.assert_close(encoder.pool(encoded)[0], memory[0, :5].mean(dim=0), **TOLERANCE)
    assert encoder.trim(ids).shape[1] == 9
    assert stream.mask.tolist() == [[True] * 4 + [False], [True] * 2 + [False] * 3]
    assert decoder.causal and not encoder.causal


def t5_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids [2, 12] of 5 and 9 real tokens, their mask, and decoder ids [2, 5] that start with the padding id."""
    ids = tiny.padded_ids((5, 9))
    start = torch.zeros(2, 1, dtype=torch.int64)
    return ids, ids != 0, torch.cat([start, tiny.padded_ids((3, 1), width=4, seed=1)], dim=1)


def test_t5_encoder_model_has_no_decoder() -> None:
    model = scattered(lambda: T5EncoderModel(T5Config(**T5_SIZES)))
    ids = tiny.padded_ids((5, 9))
    encoder = stage_hf(model)
    with torch.no_grad():
        stream = run_blocks(encoder, encoder.embed(ids), 0, encoder.depth)
        expected = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        torch.testing.assert_close(encoder.tokens(stream), expected, **TOLERANCE)
    with pytest.raises(UserError, match="no T5 decoder"):
        stage_t5_decoder(model)


def test_late_t5_block_takes_the_shared_bias_and_another_memory() -> None:
    model = tiny.tiny_t5()
    _, mask, answer = t5_batch()
    decoder = stage_t5_decoder(model)
    memory, other = torch.randn(2, 2, 12, 32).unbind()
    layers = model.decoder.block
    with torch.no_grad():
        early = run_blocks(decoder, decoder.embed(DecoderInput(answer, memory, mask)), 0, decoder.depth - 1)
        late = decoder.block(decoder.depth - 1, with_memory(early, other))
        # The same by hand, one attention at a time, with the bias of block 0.
        bias = layers[0].layer[0].SelfAttention.compute_bias(5, 5)
        causal = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)
        padding = torch.where(mask[:, None, None, :], 0.0, torch.finfo(torch.float32).min)
        hidden, _, _ = layers[-1].layer[0](early.hidden, position_bias=bias + causal)
        zero = torch.zeros(1, 4, 5, 12)
        hidden, _, _ = layers[-1].layer[1](hidden, other, position_bias=zero + padding)
        expected = layers[-1].layer[2](hidden)
        unchanged = decoder.block(decoder.depth - 1, early)
    torch.testing.assert_close(late.hidden, expected, **TOLERANCE)
    assert not torch.allclose(late.hidden, unchanged.hidden, atol=1e-3)
    with pytest.raises(ValueError, match=r"memory is \(2, 3, 32\)"):
        with_memory(early, other[:, :3])


# --- routes ----------------------------------------------------------------------------------------------------------


def all_routes() -> dict[str, tuple[StagedEncoder, object]]:
    t5 = tiny.tiny_t5()
    ids, mask, answer = t5_batch()
    return {
        "vit": (stage_vision(tiny.tiny_clip()), tiny.images()),
        "text": (stage_text(tiny.tiny_clip()), tiny.clip_ids()),
        "resnet": (stage_vision(tiny.tiny_resnet_clip()), tiny.images(size=64)),
        "timm": (stage_vision(tiny.tiny_timm_clip()), tiny.images(size=160)),
        "convnext": (stage_vision(tiny.tiny_timm_clip(name="test_convnext")), tiny.images(size=160)),
        "bert": (stage_text(tiny.tiny_bert()), tiny.padded_ids()),
        "t5 encoder": (stage_text(t5), ids),
        "t5 decoder": (stage_t5_decoder(t5), DecoderInput(answer, torch.randn(2, 12, 32), mask)),
    }


@pytest.mark.parametrize("name", all_routes())
def test_gradient_passes_the_late_block_and_nothing_before_it(name: str) -> None:
    encoder, x = all_routes()[name]
    freeze(encoder).train()
    assert not any(module.training for module in encoder.modules())
    weights = {key: weight.clone() for key, weight in encoder.state_dict().items()}
    stop = encoder.depth - 1
    taps = dict(run_early(encoder, x, tuple(range(stop + 1)), stop))
    assert list(taps) == list(range(stop + 1))
    assert not any(tap.hidden.requires_grad for tap in taps.values())
    hidden = taps[stop].hidden.clone().requires_grad_()
    pooled = encoder.pool(run_blocks(encoder, taps[stop].replace(hidden=hidden), stop, encoder.depth))
    pooled.square().sum().backward()
    assert hidden.grad is not None and hidden.grad.abs().sum() > 0
    assert all(weight.grad is None and not weight.requires_grad for weight in encoder.parameters())
    assert all(torch.equal(weights[key], weight) for key, weight in encoder.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(pooled.detach(), encoder(x), **TOLERANCE)


def test_unfrozen_towers_carry_gradient_to_every_weight() -> None:
    encoder = stage_text(tiny.tiny_t5())
    encoder(tiny.padded_ids()).sum().backward()
    bias = encoder.model.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert bias.grad.abs().sum() > 0
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_two_threads_share_one_tower() -> None:
    encoder = freeze(stage_text(tiny.tiny_bert()))
    batches = [tiny.padded_ids((3 + i, 9), seed=i) for i in range(4)]
    expected = [encoder(ids) for ids in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            with torch.no_grad():
                if not torch.allclose(encoder(batches[i]), expected[i], atol=1e-5):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_state_of_a_tower_is_the_state_of_the_library_module() -> None:
    model = tiny.tiny_clip(custom_text=True)
    keys = set(stage_text(model).state_dict())
    assert keys == {f"model.{key}" for key in model.text.state_dict()}


class Unknown(nn.Module):
    """A tower of no known family."""


@pytest.mark.parametrize(
    ("stage", "build", "message"),
    [
        (stage_vision, Unknown, "Unknown: cannot be staged; these can: open_clip"),
        (stage_vision, lambda: native(pool_type="none"), "no pooled embedding"),
        (
            stage_vision,
            lambda: timm_tower("test_nfnet"),
            "NormFreeNet: cannot be staged; these can: .*ConvNeXt",
        ),
        (
            stage_vision,
            lambda: timm_tower("test_vit", pool="", proj=""),
            "VisionTransformer without pooling.*avg",
        ),
        (stage_vision, lambda: timm_tower("test_resnet", pool="", proj=""), "ResNet without pooling"),
        (stage_vision, lambda: timm_tower("test_convnext", pool="", proj=""), "ConvNeXt without pooling"),
        (
            stage_vision,
            lambda: timm_tower("swin_s3_tiny_224", pool="abs_attn", image_size=224),
            "SwinTransformer with attention pooling",
        ),
        (stage_text, Unknown, "Unknown: cannot be staged; these can: .*BERT"),
        (stage_text, lambda: text_tower(pool_type="none"), "no pooled embedding"),
        (stage_text, lambda: GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=1)), "GPT2Model: cannot be staged"),
    ],
)
def test_other_towers_are_refused_in_words(
    stage: Callable[[nn.Module], StagedEncoder], build: Callable[[], nn.Module], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        stage(build())


def test_max_pooling_of_open_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_pooler"):
        stage_text(hf_tower(tmp_path, "roberta", "max_pooler"))


def test_a_stream_can_be_replaced_without_touching_the_first() -> None:
    stream = Stream(torch.zeros(1, 2, 3))
    assert stream.replace(hidden=torch.ones(1, 2, 3)).hidden.sum() == 6 and stream.hidden.sum() == 0


def test_grid_of_a_timm_trunk_is_that_of_the_image() -> None:
    encoder = stage_vision(tiny.tiny_timm_clip())
    for side, cells in ((160, 10), (96, 6)):
        stream = encoder.embed(tiny.images(1, side))
        assert encoder.grid(stream) == (cells, cells) and stream.hidden.shape[1] == cells * cells + 1
