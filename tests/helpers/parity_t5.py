"""Golden files of a whole T5 stack with its SHERL side path."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_sherl import load_block, published, sherl_constants
from vlkit.adapters.sherl.t5 import SherlT5Decoder, SherlT5Encoder
from vlkit.adapters.stacks import Memory
from vlkit.encoders.staged import Stream
from vlkit.encoders.towers.hf_text import HfEncoder, start_trunk
from vlkit.encoders.towers.t5 import DecoderInput, T5Decoder


class EmbeddedEncoder(HfEncoder):
    """The staged encoder, fed embeddings [B, L, D] and their mask [B, L] in place of ids."""

    def embed(self, x: tuple[Tensor, Tensor]) -> Stream:
        hidden, arguments = start_trunk(self.trunk, inputs_embeds=x[0], attention_mask=x[1])
        return Stream(hidden, x[1] != 0, extras={"arguments": arguments})


class EmbeddedDecoder(T5Decoder):
    """The staged decoder, fed embeddings [B, L, D] and their mask [B, L] in place of ids."""

    def embed(self, x: DecoderInput) -> Stream:
        embeds, mask = x.ids
        hidden, arguments = start_trunk(
            self.trunk,
            inputs_embeds=embeds,
            attention_mask=mask,
            encoder_hidden_states=x.memory,
            encoder_attention_mask=x.memory_mask.long(),
            use_cache=False,
        )
        return Stream(hidden, mask != 0, extras={"arguments": arguments})


def encoder_stack(golden: Golden) -> Rebuilt:
    """Output: the side memory. ``aux.backbone``: the frozen encoder's own."""
    config, inputs = golden.config, golden.leaves()
    base = EmbeddedEncoder(t5_of(config).encoder)
    layers = (0, *(i + 1 for i in config["side_layers"]))
    model = SherlT5Encoder(base, layers, config["reduction"], dropout=0.0, init="published")
    _load(model, golden)
    memory = model((inputs["embeds"], inputs["mask"]))
    return _rebuilt(model, memory.side, memory.frozen, inputs)


def decoder_stack(golden: Golden) -> Rebuilt:
    """Output: the last block's state behind the side norm. ``aux.backbone``: behind the frozen final norm."""
    config, inputs = golden.config, golden.leaves()
    t5 = t5_of(config)
    base = EmbeddedDecoder(t5.decoder, t5.lm_head)
    layers = (0, *(i + 1 for i in config["side_layers"] if i + 1 < config["layers"]))
    model = SherlT5Decoder(base, layers, config["reduction"], init="published")
    _load(model, golden)
    late: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda module, args: late.append(args[0]))
    memory = Memory(inputs["encoder_hidden"], inputs["side_encoder_hidden"], inputs["encoder_mask"] != 0)
    output = model((inputs["embeds"], inputs["mask"]), memory)
    return _rebuilt(model, output, base.tokens(Stream(late[0])), inputs)


def t5_of(config: dict) -> T5ForConditionalGeneration:
    """A T5 of the sizes that a golden file's config gives."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=config.get("vocab_size", 2),
            d_model=config["width"],
            d_kv=config["head_dim"],
            d_ff=config["ffn"],
            num_layers=config["layers"],
            num_heads=config["heads"],
            relative_attention_num_buckets=config["relative_buckets"],
            relative_attention_max_distance=config["relative_max_distance"],
            layer_norm_epsilon=config["ln_eps"],
            feed_forward_proj=config["ffn_activation"],
            dropout_rate=0.0,
        )
    )


def _load(model: SherlT5Encoder | SherlT5Decoder, golden: Golden) -> None:
    """Frozen weights keep their names (T5's have not changed since); the side path goes through the importer."""
    weights = golden.part("weight.")
    side = {name: tensor for name, tensor in weights.items() if "side" in name}
    frozen = {name: tensor for name, tensor in weights.items() if name not in side}
    embedding = {"embed_tokens.weight": model.base.model.embed_tokens.weight}
    model.base.model.load_state_dict({**frozen, **embedding})
    model.base.to(golden.dtype)
    load_block(nn.ModuleDict({"adapter": model.adapter, "norm": model.norm}), "sherl/t5", side, golden)


def _rebuilt(
    model: SherlT5Encoder | SherlT5Decoder, output: Tensor, backbone: Tensor, inputs: dict[str, Tensor]
) -> Rebuilt:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    constants = {**sherl_constants(model.adapter), "ln_eps": model.norm.eps}
    return Rebuilt(output, published(trained.items(), "sherl/t5"), inputs, {"backbone": backbone}, constants=constants)
