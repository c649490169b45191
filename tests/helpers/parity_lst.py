"""Golden files of LST: whole T5 stacks and the CLIP-ViL joint encoder with their side networks."""

from __future__ import annotations

from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_joint import JointEncoder
from helpers.parity_sherl import load_block, published
from helpers.parity_t5 import EmbeddedDecoder, EmbeddedEncoder, t5_of
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.lst.method import TEMPERATURE, LstAdapter, make_ladder
from vlkit.adapters.lst.t5 import LstT5Decoder, LstT5Encoder, SideMemory
from vlkit.adapters.published.names import drop_idle_gates
from vlkit.encoders.staged import Stream


def t5_stack(golden: Golden) -> Rebuilt:
    """Output: the side state behind its norm. ``aux.backbone``: behind the frozen final norm."""
    config, inputs = golden.config, golden.leaves()
    t5, keep = t5_of(config), tuple(config["side_layers"])
    if config["bidirectional_bias"]:
        model = LstT5Encoder(EmbeddedEncoder(t5.encoder), keep, config["reduction"])
        _load(model, golden)
        memory = model((inputs["embeds"], inputs["mask"]))
        output, backbone = memory.side, memory.frozen
    else:
        model = LstT5Decoder(EmbeddedDecoder(t5.decoder, t5.lm_head), keep, config["reduction"])
        _load(model, golden)
        memory = SideMemory(inputs["encoder_hidden"], inputs["side_encoder_hidden"], inputs["encoder_mask"] != 0)
        output, backbone = model((inputs["embeds"], inputs["mask"]), memory)
    constants = {"ln_eps": model.ladder.norm.eps, "gate": f"sigmoid(g/{TEMPERATURE:g})"}
    return Rebuilt(
        output,
        published(model.ladder.named_parameters(), "lst/t5"),
        inputs,
        {"backbone": backbone},
        constants=constants,
    )


def _load(model: LstT5Encoder | LstT5Decoder, golden: Golden) -> None:
    """Frozen weights keep their names; the side path goes through the importer."""
    weights = golden.part("weight.")
    side = {name: tensor for name, tensor in weights.items() if "side" in name}
    frozen = {name: tensor for name, tensor in weights.items() if name not in side}
    embedding = {"embed_tokens.weight": model.base.model.embed_tokens.weight}
    model.base.model.load_state_dict({**frozen, **embedding})
    model.base.to(golden.dtype)
    load_block(model.ladder, "lst/t5", drop_idle_gates(side), golden)


class LadderJointEncoder(JointEncoder):
    """The frozen joint encoder; narrow blocks of its kind get its attention mask."""

    def embed(self, x: tuple[Tensor, Tensor, Tensor]) -> Stream:
        stream = super().embed(x)
        return stream.replace(extras={"arguments": stream.extras})

    def block(self, i: int, stream: Stream) -> Stream:
        return stream.replace(hidden=self.model["layer"][i](stream.hidden, **stream.extras["arguments"]))

    def transformer_block(self, i: int) -> nn.Module:
        return self.model["layer"][i]


def joint_encoder(golden: Golden) -> Rebuilt:
    """Every layer is kept; the side network's output replaces the joint sequence."""
    config, inputs = golden.config, golden.leaves()
    base = LadderJointEncoder(config)
    ladder = make_ladder(base, reduction=config["reduction"], bias=False)
    adapter = LstAdapter(ladder, config["width"], config["hidden"], bias=False, init="published")
    model = AdaptedEncoder(base, adapter)
    weights = golden.part("weight.")
    base.to(golden.dtype).model.load_state_dict({n: t for n, t in weights.items() if not n.startswith("side_")})
    side = {n: t for n, t in weights.items() if n.startswith("side_")}
    load_block(adapter, "lst/joint", drop_idle_gates(side), golden)
    encoded = model((inputs["lang"], inputs["lang_mask"], inputs["visual"]))
    eps = {norm.eps for norm in (*base.modules(), *ladder.modules()) if isinstance(norm, nn.LayerNorm)}
    constants = {"gate_temperature": TEMPERATURE, "l1_eps": None, "side_ln_eps": None}
    (constants["backbone_ln_eps"],) = eps
    return Rebuilt(encoded.tokens, published(adapter.named_parameters(), "lst/joint"), inputs, constants=constants)
