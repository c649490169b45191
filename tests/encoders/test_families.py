"""Families of transformers: each row serves staging, adapting, loading and the catalog; so does one added here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import UMT5ForConditionalGeneration

from helpers import tiny
from helpers.words import save_words
from vlkit.adapters import ADAPTERS
from vlkit.adapters.lst.pruning import prune_
from vlkit.encoders import families, hub
from vlkit.encoders.blocks.anatomy import anatomy_of, ask
from vlkit.encoders.blocks.parts import AttentionParts, BlockParts
from vlkit.encoders.catalog import STAGED, catalog
from vlkit.encoders.families import DEBERTA, FAMILIES, M2M100, T5, UMT5, Family
from vlkit.encoders.load import load_text_base
from vlkit.encoders.stage import stage_hf, stage_t5_decoder
from vlkit.encoders.staged import run_blocks
from vlkit.encoders.towers.hf_text import HfEncoder
from vlkit.encoders.towers.t5 import DecoderInput
from vlkit.errors import UserError

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
BY_NAME = {family.name: family for family in FAMILIES}
PLAIN = [family.name for family in FAMILIES if family.parts is not None]

# A family that is not built in, whose blocks are unlike BERT's: norms stand first.
NEW = Family(
    name="Megatron-BERT",
    kind="megatron-bert",
    model="MegatronBertModel",
    encoder="MegatronBertModel",
    block="MegatronBertLayer",
    blocks="encoder.layer",
    norm="encoder.ln",
    pool="first",
    parts=BlockParts(
        norm_first=True,
        attention=AttentionParts(
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            out="attention.output.dense",
            norm="attention.ln",
            heads="attention.self.num_attention_heads",
        ),
        expand=("intermediate.dense",),
        shrink="output.dense",
        mlp=("intermediate", "output.dense"),
        mlp_norm="ln",
        widths=("hidden_size", "intermediate_size"),
        heads="num_attention_heads",
    ),
    published={"nvidia/megatron-bert-uncased-345m": {"num_hidden_layers": 2}},
)


@pytest.fixture
def one_more_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, NEW))


def ids_for(encoder: HfEncoder) -> Tensor:
    return tiny.padded_ids((5, 9), pad_id=encoder.pad_id)


def check_equal_to_the_library(family: Family) -> HfEncoder:
    """Staged, whole and trimmed, the encoder gives what its library gives."""
    encoder = stage_hf(tiny.tiny_text(family))
    ids = ids_for(encoder)
    real = ids != encoder.pad_id
    with torch.no_grad():
        expected = encoder.model(input_ids=ids, attention_mask=real.long())
        stream = run_blocks(encoder, encoder.embed(ids), 0, encoder.depth)
        torch.testing.assert_close(encoder.tokens(stream)[real], expected.last_hidden_state[real], **TOLERANCE)
        pooled = encoder(ids)
        torch.testing.assert_close(encoder(encoder.trim(ids)[:1]), pooled[:1], **TOLERANCE)
    mean = torch.stack([states[own].mean(0) for states, own in zip(expected.last_hidden_state, real, strict=True)])
    first = getattr(expected, "pooler_output", None)
    first = expected.last_hidden_state[:, 0] if first is None else first
    torch.testing.assert_close(pooled, {"mean": mean, "first": first}[family.pool], **TOLERANCE)
    assert encoder.trim(ids).shape[1] == 9 and encoder.depth == 3 and encoder.out_dim == tiny.WIDTH
    return encoder


def check_parts_make_up_the_block(encoder: HfEncoder) -> None:
    """A sequence of one token, asked by itself, goes through a block as the library runs it, position bias aside."""
    ids = ids_for(encoder)[:, :1]
    stream = encoder.embed(ids)
    zeroed = {"position_bias": torch.zeros(2, 4, 1, 1)} if "position_bias" in stream.extras["arguments"] else {}
    stream = stream.replace(extras={"arguments": stream.extras["arguments"] | zeroed})
    with torch.no_grad():
        expected = encoder.block(1, stream).hidden
        found = ask(anatomy_of(encoder.transformer_block(1)), stream.hidden, stream.mask, stream.hidden)
    torch.testing.assert_close(found, expected, **TOLERANCE)


def check_narrow_blocks(encoder: HfEncoder) -> None:
    """Undivided and filled from the tower, they are its blocks; divided, LST trains on them."""
    ids = ids_for(encoder)
    blocks = encoder.narrow(tuple(range(encoder.depth)), 1)
    prune_(blocks, encoder)
    stream = encoder.embed(ids)
    with torch.no_grad():
        hidden, arguments = stream.hidden, blocks.eval().start(stream.extras)
        for i in range(encoder.depth):
            hidden, arguments = blocks.run(i, hidden, arguments)
        expected = run_blocks(encoder, stream, 0, encoder.depth).hidden
    torch.testing.assert_close(hidden, expected, **TOLERANCE)


def check_trains(kind: str, family: Family) -> None:
    """One backward pass of a method gives gradient to what it trains."""
    adapted = ADAPTERS[kind]().build(stage_hf(tiny.tiny_text(family)))
    ids = tiny.padded_ids((5, 9), pad_id=adapted.base.pad_id)
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dim():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    adapted.train()(ids).pooled.square().sum().backward()
    assert any(p.grad is not None and p.grad.count_nonzero() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", BY_NAME)
def test_encoder_equals_the_library(name: str) -> None:
    check_equal_to_the_library(BY_NAME[name])


@pytest.mark.parametrize("name", PLAIN)
def test_blocks_are_known_inside(name: str) -> None:
    encoder = stage_hf(tiny.tiny_text(BY_NAME[name]))
    if BY_NAME[name] is UMT5:  # every block adds a bias of its own, the same for the one pair of a single token
        nn.init.zeros_(encoder.transformer_block(1).layer[0].SelfAttention.relative_attention_bias.weight)
    check_parts_make_up_the_block(encoder)
    check_narrow_blocks(stage_hf(tiny.tiny_text(BY_NAME[name])))


@pytest.mark.parametrize("name", BY_NAME)
@pytest.mark.parametrize("kind", ["sherl", "lora", "lst", "vqt"])
def test_methods_train_on_every_family(kind: str, name: str) -> None:
    if name in PLAIN or kind in ("sherl", "lora"):
        check_trains(kind, BY_NAME[name])
        return
    with pytest.raises(UserError, match="not plain softmax attention; use sherl, unipt"):
        check_trains(kind, BY_NAME[name])


def test_a_new_family_is_one_row(one_more_row: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_parts_make_up_the_block(check_equal_to_the_library(NEW))
    check_narrow_blocks(stage_hf(tiny.tiny_text(NEW)))
    for kind in ("sherl", "lora", "lst", "vqt", "unipt", "dtl"):
        check_trains(kind, NEW)
    monkeypatch.setattr("open_clip.list_models", list)  # the rest of the catalog has a test of its own
    assert {row["name"]: row["text"] for row in catalog()}["nvidia/megatron-bert-uncased-345m"] == STAGED
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    tiny.tiny_text(NEW).save_pretrained(tmp_path)
    save_words(tmp_path)
    assert load_text_base(str(tmp_path)).encoder.depth == 3


def test_without_its_row_the_family_is_refused_with_the_others_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"MegatronBertModel: cannot be staged; these can: .*DistilBERT, ELECTRA"):
        stage_hf(tiny.tiny_text(NEW))
    tiny.tiny_text(NEW).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="family 'megatron-bert' cannot be staged; these can: bert, roberta"):
        load_text_base(str(tmp_path))


def test_umt5_decodes_like_the_library() -> None:
    torch.manual_seed(0)
    model = UMT5ForConditionalGeneration(tiny.tiny_text(UMT5).config).eval()
    tiny.scatter_(model)
    ids, answer = tiny.padded_ids((5, 9)), torch.tensor([[0, 7, 8], [0, 9, 3]])
    encoder, decoder = stage_hf(model), stage_t5_decoder(model)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=(ids != 0).long(), decoder_input_ids=answer).logits
        memory = encoder.tokens(run_blocks(encoder, encoder.embed(ids), 0, encoder.depth))
        stream = run_blocks(decoder, decoder.embed(DecoderInput(answer, memory, ids != 0)), 0, decoder.depth)
        torch.testing.assert_close(decoder.logits(decoder.tokens(stream)), expected, **TOLERANCE)


def test_training_skips_no_block() -> None:
    encoder = stage_hf(tiny.tiny_text(M2M100, encoder_layerdrop=1.0)).train()
    assert encoder.embed(ids_for(encoder)).hidden.shape == (2, 12, tiny.WIDTH)


def test_configurations_that_are_no_plain_chain_are_refused() -> None:
    with pytest.raises(UserError, match="DebertaV2Model with conv_kernel_size = 3: cannot be staged"):
        stage_hf(tiny.tiny_text(DEBERTA, conv_kernel_size=3))


def test_block_classes_of_other_libraries_are_no_family() -> None:
    assert families.family_of_block(type("TransformerBlock", (nn.Module,), {})()) is None
    assert families.family_of_encoder(None) is None and T5 in FAMILIES
