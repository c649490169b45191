"""Golden files of LST: whole T5 stacks, CLIP-T5, and the CLIP-ViL joint encoder with their side networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_joint import JointEncoder
from helpers.parity_sherl import load_block, published
from helpers.parity_t5 import EmbeddedDecoder, EmbeddedEncoder, t5_of
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.lst.ladder import TEMPERATURE, make_ladder
from vlkit.adapters.lst.method import LstAdapter
from vlkit.adapters.lst.t5 import LstT5, LstT5Decoder, LstT5Encoder
from vlkit.adapters.published.names import drop_idle_gates
from vlkit.adapters.stacks import Memory
from vlkit.encoders.staged import Stream
from vlkit.encoders.towers.hf_text import HfEncoder
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.tasks.generation import shift_right
from vlkit.tasks.visual_embedding import VisualEmbedding


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
        memory = Memory(inputs["encoder_hidden"], inputs["side_encoder_hidden"], inputs["encoder_mask"] != 0)
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


def clip_t5(golden: Golden) -> Rebuilt:
    """The whole network: ids and grid features in, logits out; one or more images per text. ``aux.loss``: see below."""
    config, inputs = golden.config, golden.leaves()
    t5 = t5_of({**config, **{name: config[given] for name, given in CLIP_T5_SIZES.items()}, "ffn_activation": "relu"})
    keep = None if config["side_layers"] is None else tuple(config["side_layers"])
    encoder = LstT5Encoder(HfEncoder(t5.encoder), keep, config["reduction"])
    decoder = LstT5Decoder(T5Decoder(t5.decoder, t5.lm_head), keep, config["reduction"], init="published")
    model = LstT5(encoder, decoder)
    side = round(config["pooled_tokens_per_image"] ** 0.5)
    visual = VisualEmbedding(config["grid_width"], config["d_model"], side, eps=config["rms_eps"])
    parts = {
        "encoder.visual_embedding.": ("lst/clip_t5_visual", visual),
        "side_final_upsample.": ("lst/t5_out", nn.ModuleDict({"up": decoder.up})),
        "encoder.": ("lst/t5", encoder.ladder),
        "decoder.": ("lst/t5", decoder.ladder),
    }
    _load_clip_t5(t5.to(golden.dtype), parts, golden)

    labels = inputs["labels"].masked_fill(inputs["labels"] < 0, config["pad_id"])
    tokens = visual(inputs["grid"].flatten(1, -2), t5.shared.weight, images=config["images"])
    with StaysDouble():
        output = model(inputs["text_ids"], shift_right(labels, config["pad_id"]), tokens)
    weights: dict[str, Tensor] = {}
    for start, (table, part) in parts.items():
        weights |= published(part.named_parameters(), table, "" if table == "lst/t5_out" else start)
    norms = {norm.eps for part in (visual, encoder, decoder) for norm in part.modules() if isinstance(norm, nn.RMSNorm)}
    (eps,) = norms
    return Rebuilt(
        output,
        weights,
        inputs,
        {"loss": _label_loss(output, inputs["labels"])[None]},
        constants={"rms_eps": eps, "gate_temperature": TEMPERATURE},
    )


class StaysDouble(TorchFunctionMode):
    """Inside, no double tensor becomes single: transformers takes T5's variances and softmax in single precision, the
    golden files of CLIP-T5 in double."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        narrows = func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args)
        if narrows and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))


CLIP_T5_SIZES = {"width": "d_model", "head_dim": "d_kv", "ffn": "d_ff", "vocab_size": "vocabulary", "ln_eps": "rms_eps"}
"""Name in other golden files -> name in those of CLIP-T5."""


def _load_clip_t5(t5: Any, parts: dict[str, tuple[str, nn.Module]], golden: Golden) -> None:
    """The T5 keeps its names and shares one token table; every other weight belongs to one of ``parts``."""
    rest = drop_idle_gates_of_both(golden.part("weight."))
    for start, (table, part) in parts.items():
        trained = [name for name in rest if name.startswith(start) and ("side" in name or "visual" in name)]
        own = {name: rest.pop(name) for name in trained}
        strip = "" if table == "lst/t5_out" else start
        load_block(part, table, {name[len(strip) :]: tensor for name, tensor in own.items()}, golden)
    tied = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"))
    t5.load_state_dict({**rest, **{name: rest["shared.weight"] for name in tied}})


def drop_idle_gates_of_both(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """:func:`drop_idle_gates` for the encoder's and the decoder's side network in one file."""
    kept: dict[str, Tensor] = {}
    for stack in ("encoder.", "decoder."):
        own = {name[len(stack) :]: tensor for name, tensor in tensors.items() if name.startswith(stack)}
        kept |= {stack + name: tensor for name, tensor in drop_idle_gates(own).items()}
    return kept | {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.", "decoder."))}


def _label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per token, mean over all tokens with a label."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


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
