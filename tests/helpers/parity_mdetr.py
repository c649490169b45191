"""Golden files of MDETR's encoder and decoder with a SHERL block in each."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_sherl import load_block, published, sherl_constants
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import StagedEncoder, Stream, freeze, run_blocks, run_early


class Layer(nn.Module):
    """One post-norm layer: self-attention, attention to the memory (decoder only), MLP; batch first."""

    def __init__(self, config: dict, decoder: bool) -> None:
        super().__init__()
        width, heads, eps = config["width"], config["heads"], config["ln_eps"]
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn_image = nn.MultiheadAttention(width, heads, batch_first=True) if decoder else None
        self.linear1 = nn.Linear(width, config["ffn"])
        self.linear2 = nn.Linear(config["ffn"], width)
        # MDETR counts the norms as if the decoder still attended to the text on its own: 1, 3, 4.
        for number in (1, 3, 4) if decoder else (1, 2):
            self.add_module(f"norm{number}", nn.LayerNorm(width, eps=eps))

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None, memory: Memory | None) -> Tensor:
        query = x + position
        x = self.norm1(x + self.self_attn(query, query, x, key_padding_mask=mask, need_weights=False)[0])
        if memory is not None:
            found = self.cross_attn_image(
                x + position, memory.states + memory.position, memory.states,
                key_padding_mask=memory.padding, need_weights=False,
            )[0]  # fmt: skip
            x = self.norm3(x + found)
        last = self.norm2 if memory is None else self.norm4
        return last(x + self.linear2(F.relu(self.linear1(x))))


class Memory(NamedTuple):
    """What the decoder attends to: states and positions [B, S, D], padding [B, S] bool (True = padding)."""

    states: Tensor
    position: Tensor
    padding: Tensor


class Stack(StagedEncoder):
    """The frozen encoder or decoder; its input is (states, their positions, padding or None, memory or None)."""

    def __init__(self, config: dict, decoder: bool) -> None:
        super().__init__()
        if (config["norm"], config["activation"]) != ("post", "relu"):
            raise ValueError("only post-norm layers with ReLU are rebuilt here")
        self.depth = config["decoder_layers" if decoder else "encoder_layers"]
        self.model = nn.ModuleDict({"layers": nn.ModuleList(Layer(config, decoder) for _ in range(self.depth))})
        if decoder:
            self.model["norm"] = nn.LayerNorm(config["width"], eps=config["ln_eps"])

    def embed(self, x: tuple[Tensor, Tensor, Tensor | None, Memory | None]) -> Stream:
        hidden, *rest = x
        return Stream(hidden, extras=dict(zip(("position", "mask", "memory"), rest, strict=True)))

    def block(self, i: int, stream: Stream) -> Stream:
        return stream.replace(hidden=self.model["layers"][i](stream.hidden, **stream.extras))


def encoder_decoder(golden: Golden) -> Rebuilt:
    """Encoder: side memory from the taps. Decoder: the last layer re-consumes and attends to the side memory."""
    config, inputs = golden.config, golden.leaves()
    parts, blocks = {}, {}
    for name in ("encoder", "decoder"):
        taps = tuple(i + 1 for i in config[f"{name}_taps"])
        weights = golden.part(f"weight.{name}.")
        parts[name] = freeze(Stack(config, decoder=name == "decoder").to(golden.dtype))
        parts[name].model.load_state_dict({n: t for n, t in weights.items() if not n.startswith("side_block.")})
        widths = (config["width"],) * len(taps)
        blocks[name] = SherlAdapter(widths, config["width"], config["hidden"], taps, int(name == "decoder"), "mdetr")
        load_block(blocks[name], "sherl/mdetr", golden.part(f"weight.{name}.side_block."), golden)

    image, text = inputs["image"].flatten(2).transpose(1, 2), inputs["text"].transpose(0, 1)
    states = torch.cat([image, text], dim=1)
    position = F.pad(inputs["pos"].flatten(2).transpose(1, 2), (0, 0, 0, text.shape[1]))
    padding = torch.cat([inputs["image_pad"].flatten(1), inputs["text_pad"]], dim=1)
    side, frozen = _merge(parts["encoder"], blocks["encoder"], (states, position, padding, None))
    queries = inputs["query_embed"].expand(len(states), -1, -1)
    memory = Memory(frozen.hidden, position, padding)
    decoder = parts["decoder"]
    target, stream = _merge(decoder, blocks["decoder"], (torch.zeros_like(queries), queries, None, memory))
    stream = stream.replace(hidden=target, extras={**stream.extras, "memory": memory._replace(states=side)})
    last = run_blocks(decoder, stream, decoder.depth - 1, decoder.depth).hidden
    trained = {}
    for name, block in blocks.items():
        trained |= published(block.named_parameters(), "sherl/mdetr", f"{name}.side_block.")
    return Rebuilt(
        output=torch.stack([target, decoder.model["norm"](last)]),
        weights=trained,
        inputs=inputs,
        aux={"side_img_memory": side.transpose(0, 1), "img_memory": frozen.hidden.transpose(0, 1)},
        constants={**sherl_constants(blocks["encoder"]), "ln_eps": blocks["encoder"].head.norm.eps},
    )


def _merge(stack: Stack, block: SherlAdapter, x: tuple) -> tuple[Tensor, Stream]:
    """Run the early route; returns the merged state and the stream at its end."""
    taps = []
    for k, stream in run_early(stack, x, block.layers, stack.depth - block.late):
        if k in block.layers:
            taps.append(stream)
    return block(taps, stream.hidden), stream
