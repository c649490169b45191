"""Golden files of UniPT: blocks over taps, the CLIP-ViL joint encoder and MDETR's encoder and decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_joint import JointEncoder
from helpers.parity_mdetr import Memory, Stack
from helpers.parity_sherl import load_block, published
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.unipt.pooled import CLAMP, PooledUniptAdapter
from vlkit.adapters.unipt.tokens import TokenFlavour, UniptAdapter, UniptDecoderAdapter
from vlkit.encoders.staged import Stream, freeze, run_early


def token_block(golden: Golden, flavour: TokenFlavour) -> Rebuilt:
    """A block over tokens (``text``) or a grid (``conv``)."""
    inputs = golden.leaves()
    if golden.config["identity"] is not True:
        raise ValueError("only the flavours with the identity are rebuilt here")
    hidden = [inputs[f"features.{i}"] for i in range(sum(name.startswith("features.") for name in inputs))]
    mask = None
    if flavour == "text":
        mask = torch.arange(hidden[0].shape[1]) < inputs["lengths"].unsqueeze(1)
    channels = 1 if flavour == "conv" else -1
    block = UniptAdapter(
        widths=tuple(x.shape[channels] for x in hidden),
        width=golden.config["embed_size"],
        hidden=golden.config["hidden"],
        layers=tuple(range(len(hidden))),
        flavour=flavour,
    )
    load_block(block, f"unipt/{flavour}", golden.part("weight."), golden)
    output = block([Stream(x, mask) for x in hidden], hidden[-1])
    return Rebuilt(
        output=output.flatten(2).transpose(1, 2) if flavour == "conv" else output,
        weights=published(block.named_parameters(), f"unipt/{flavour}"),
        inputs=inputs,
        buffers=published(block.named_buffers(), f"unipt/{flavour}"),
        constants=unipt_constants(block),
    )


def pooled_block(golden: Golden) -> Rebuilt:
    """A block in the joint space, over a text tower (mask and position given) or a vision tower (token 0)."""
    inputs, config = golden.leaves(), golden.config
    if config["base"] not in ("position", "token 0") or config["identity"]:
        raise ValueError(f"config base {config['base']!r}, identity {config['identity']}: not of this flavour")
    summary = inputs["position"] if config["base"] == "position" else inputs["last"].new_zeros(1).long()
    mask = inputs["mask"] != 0 if "mask" in inputs else None
    count = sum(name.startswith("features.") for name in inputs)
    taps = [Stream(inputs[f"features.{i}"], mask, summary.expand(len(inputs["last"]))) for i in range(count)]
    block = PooledUniptAdapter(
        tuple(tap.hidden.shape[-1] for tap in taps), inputs["last"].shape[-1], config["hidden"], tuple(range(count))
    )
    load_block(block, "unipt/pooled", golden.part("weight."), golden)
    output = block(taps, inputs["last"].squeeze(1)).view_as(golden.tensors["output"])
    constants = {"l1": f"x / clamp(sum|x|, min={CLAMP:.0e})".replace("e-0", "e-")}
    return Rebuilt(output, published(block.named_parameters(), "unipt/pooled"), inputs, constants=constants)


class MaskedJointEncoder(JointEncoder):
    """The frozen joint encoder; its stream says which tokens are real."""

    def embed(self, x: tuple[Tensor, Tensor, Tensor]) -> Stream:
        stream = super().embed(x)
        return stream.replace(mask=stream.extras["attention_mask"][:, 0, 0] == 0)


def joint_encoder(golden: Golden) -> Rebuilt:
    """Every layer is tapped; the branch's output replaces the joint sequence."""
    config, inputs = golden.config, golden.leaves()
    base = MaskedJointEncoder(config)
    layers = tuple(range(base.depth + 1))
    model = AdaptedEncoder(base, UniptAdapter(base.widths, config["width"], config["hidden"], layers, "joint"))
    weights = golden.part("weight.")
    base.to(golden.dtype).model.load_state_dict({n: t for n, t in weights.items() if not n.startswith("side_")})
    side = {n: t for n, t in weights.items() if n.startswith("side_")}
    load_block(model.adapter, "unipt/joint", side, golden)
    encoded = model((inputs["lang"], inputs["lang_mask"], inputs["visual"]))
    constants = {**unipt_constants(model.adapter), "gate_temperature": None}
    constants["backbone_ln_eps"] = base.model["visn_fc"]["visn_layer_norm"].eps
    return Rebuilt(
        encoded.tokens, published(model.adapter.named_parameters(), "unipt/joint"), inputs, constants=constants
    )


def encoder_decoder(golden: Golden) -> Rebuilt:
    """Encoder: a narrow side memory. Decoder: candidates read it, then all levels go through one head."""
    config, inputs = golden.config, golden.leaves()
    stacks, blocks = {}, {}
    # Selected numbers count the input as 0, as taps do; the deepest tap is the anchor.
    for name, kind in (("encoder", UniptAdapter), ("decoder", UniptDecoderAdapter)):
        stacks[name] = freeze(Stack(config, decoder=name == "decoder").to(golden.dtype))
        layers = (*config["selected"], stacks[name].depth)
        sizes = ((config["width"],) * len(layers), config["width"], config["hidden"], layers)
        blocks[name] = kind(*sizes) if name == "decoder" else kind(*sizes, flavour="mdetr", head=False)
        stacks[name].model.load_state_dict(golden.part(f"weight.{name}."))
        load_block(blocks[name], f"unipt/mdetr_{name}", _side(golden, name), golden)
    image, text = inputs["image"].flatten(2).transpose(1, 2), inputs["text"].transpose(0, 1)
    states = torch.cat([image, text], dim=1)
    position = F.pad(inputs["pos"].flatten(2).transpose(1, 2), (0, 0, 0, text.shape[1]))
    padding = torch.cat([inputs["image_pad"].flatten(1), inputs["text_pad"]], dim=1)

    reduced, frozen = _read(stacks["encoder"], blocks["encoder"], (states, position, padding, None))
    side = blocks["encoder"].side(reduced, ~padding)
    queries = inputs["query_embed"].expand(len(states), -1, -1)
    memory = Memory(frozen, position, padding)
    reduced, _ = _read(stacks["decoder"], blocks["decoder"], (torch.zeros_like(queries), queries, None, memory))
    output = blocks["decoder"].levels(reduced, side, ~padding)
    trained = {}
    for name, block in blocks.items():
        trained |= published(block.named_parameters(), f"unipt/mdetr_{name}")
    return Rebuilt(
        output,
        trained,
        inputs,
        aux={"side_img_memory": side, "img_memory": frozen.transpose(0, 1)},
        constants={**unipt_constants(blocks["decoder"]), "ln_eps": blocks["decoder"].head.norm.eps},
    )


def _side(golden: Golden, stack: str) -> dict[str, Tensor]:
    """The side weights of a stack; what names neither is the decoder's."""
    other = "_decoder." if stack == "encoder" else "_encoder."
    shared = ("side_projection_crosser", "side_final_upsample")
    names = {n: t for n, t in golden.part("weight.").items() if n.startswith("side_") and other not in n}
    return names if stack == "decoder" else {n: t for n, t in names.items() if not n.startswith(shared)}


def _read(stack: Stack, block: UniptAdapter, x: tuple) -> tuple[list[Tensor], Tensor]:
    """Reduce the taps of a frozen stack; the anchor is its output, behind its final norm if it has one."""
    reduced = []
    for k, stream in run_early(stack, x, block.layers, stack.depth):
        if k == stack.depth and "norm" in stack.model:
            stream = stream.replace(hidden=stack.model["norm"](stream.hidden))
        if k in block.layers:
            reduced.append(block.reduce(len(reduced), stream))
    return reduced, stream.hidden


def unipt_constants(block: UniptAdapter) -> dict[str, object]:
    """The numbers a token block works with, under the names that golden configs give them."""
    constants: dict[str, object] = {"l1_eps": block.aggregator.eps}
    norms = {norm.eps for norm in block.modules() if isinstance(norm, nn.LayerNorm)}
    if norms:
        (constants["ln_eps"],) = norms
        constants["side_ln_eps"] = constants["ln_eps"]
    batch_norms = {(norm.eps, norm.momentum) for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)}
    if batch_norms:
        ((constants["bn_eps"], constants["bn_momentum"]),) = batch_norms
    return constants
