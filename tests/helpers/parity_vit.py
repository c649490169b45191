"""Golden files of methods on a plain vision transformer: VQT, SynQT and DTL."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_sherl import load_block, published
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.dtl import DtlAdapter
from vlkit.adapters.published.names import import_published, strip_prefix
from vlkit.adapters.synqt import NORM_EPS as SYNQT_EPS
from vlkit.adapters.synqt import SynqtAdapter
from vlkit.adapters.vqt import NORM_EPS, VqtAdapter, unit
from vlkit.encoders.blocks.anatomy import Attention, Dense, attend
from vlkit.encoders.staged import StagedEncoder, Stream, run_early

# Names of VQT's frozen blocks -> timm's.
_VQT = {
    "attention_norm": "norm1",
    "ffn_norm": "norm2",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
    "attn.out": "attn.proj",
}


class Vit(StagedEncoder):
    """A frozen vision transformer of timm's blocks; its input are patch states [B, N, D] without class token."""

    def __init__(self, width: int, heads: int, depth: int, mlp: int, cells: int, eps: float) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=eps)
        blocks = (Block(width, heads, mlp / width, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "norm": norm(width)})
        self.model.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.model.pos_embed = nn.Parameter(torch.zeros(1, cells + 1, width))
        self.depth, self.out_dim, self.token_dim = depth, width, width
        self.widths, self.stages = (width,) * (depth + 1), tuple(range(depth + 1))
        self.eps = eps

    def embed(self, x: Tensor) -> Stream:
        hidden = torch.cat([self.model.cls_token.expand(len(x), -1, -1), x], dim=1) + self.model.pos_embed
        return Stream(hidden)

    def block(self, i: int, stream: Stream) -> Stream:
        return stream.replace(hidden=self.model["blocks"][i](stream.hidden))

    def transformer_block(self, i: int) -> nn.Module:
        return self.model["blocks"][i]

    def tokens(self, stream: Stream) -> Tensor:
        return self.model["norm"](stream.hidden)

    def pool(self, stream: Stream) -> Tensor:
        return self.tokens(stream)[:, 0]

    def grid(self, stream: Stream) -> tuple[int, int]:
        side = round((stream.hidden.shape[1] - 1) ** 0.5)
        return side, side


def vqt_features(golden: Golden) -> Rebuilt:
    """Class token and query outputs of every layer, each part of norm 1."""
    config, inputs = golden.config, golden.leaves()
    weights = golden.part("weight.")
    cells = (config["image"] // config["patch"]) ** 2
    base = Vit(config["width"], config["heads"], config["layers"], config["mlp"], cells, config["ln_eps"])
    base.to(golden.dtype).model.load_state_dict(_vqt_base(weights, config["layers"]))
    adapter = VqtAdapter(config["width"], 1, tuple(range(base.depth)), base.query, config["queries"], dropout=0.0).to(
        golden.dtype
    )
    model = AdaptedEncoder(base, adapter)
    side = {n: t for n, t in weights.items() if "query_prompt" in n}
    missing, unexpected = adapter.load_state_dict(import_published("vqt", side), strict=False)
    if unexpected or set(missing) != {"head.weight", "head.bias"}:
        raise ValueError(f"queries do not fit: {missing}, {unexpected}")
    embedding = "transformer.embeddings.patch_embeddings"
    kernel, bias = weights[f"{embedding}.weight"], weights[f"{embedding}.bias"]
    patches = nn.functional.conv2d(inputs["image"], kernel, bias, stride=config["patch"]).flatten(2).transpose(1, 2)
    found = []
    for k, stream in run_early(base, patches, adapter.layers, base.depth):
        if k in adapter.layers:
            found.append(adapter.reduce(len(found), stream))
    output = torch.cat([unit(model.base.tokens(stream)[:, 0]), adapter.features(found)], dim=1)
    trained = published([("queries", adapter.queries)], "vqt")
    constants = {"ln_eps": base.model["blocks"][0].norm1.eps, "normalize_eps": NORM_EPS}
    return Rebuilt(output, trained, inputs, constants=constants)


def _vqt_base(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The frozen weights under timm's names; query, key and value become one."""
    embeddings, encoder = "transformer.embeddings", "transformer.encoder"
    found = {
        "cls_token": weights[f"{embeddings}.cls_token"],
        "pos_embed": weights[f"{embeddings}.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = weights[f"{encoder}.encoder_norm.{kind}"]
        for i in range(depth):
            layer = f"{encoder}.layer.{i}"
            parts = [weights[f"{layer}.attn.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            for name, own in _VQT.items():
                found[f"blocks.{i}.{own}.{kind}"] = weights[f"{layer}.{name}.{kind}"]
    return found


def vqt_attention(golden: Golden) -> Rebuilt:
    """Attention of queries and image tokens, with keys and values from the image tokens alone."""
    inputs, config = golden.leaves(), golden.config
    weights = {name: tensor.clone().requires_grad_() for name, tensor in golden.part("weight.").items()}
    maps = (Dense(weights[f"{part}.weight"], weights[f"{part}.bias"]) for part in ("query", "key", "value", "out"))
    scale = (config["width"] / config["heads"]) ** -0.5
    attention = Attention(*maps, heads=config["heads"], scale=scale, norm=nn.Identity())
    hidden = inputs["hidden"]
    return Rebuilt(attend(attention, hidden, hidden[:, config["queries"] :]), weights, inputs)


def synqt(golden: Golden) -> Rebuilt:
    """Logits of the classifier on the mix of all features."""
    config, inputs, weights = golden.config, golden.leaves(), golden.part("weight.")
    width, depth, cells = config["hidden"], config["layers"], (config["image"] // config["patch"]) ** 2
    mlp = len(weights["blocks.0.mlp.fc1.bias"])
    base = Vit(width, config["heads"], depth, mlp, cells, config["backbone_ln_eps"]).to(golden.dtype)
    adapter = SynqtAdapter(
        width,
        config["classes"],
        depth,
        base.seen_by_queries,
        base.query_in_parts,
        config["query_tokens"],
        config["adapter_hidden"],
        config["attention_adapter_hidden"],
        dropout=0.0,
        drop_path=0.0,
        init="published",
    ).to(golden.dtype)
    model = AdaptedEncoder(base, adapter)
    head = {name: tensor for name, tensor in weights.items() if name.startswith("head.")}
    adapter.train(golden.training)
    adapter.load_state_dict(import_published("synqt", strip_prefix(weights, "synqt.")) | head)
    skipped = ("synqt.", "head.", "patch_embed.")
    base.model.load_state_dict({n: t for n, t in weights.items() if not n.startswith(skipped)})
    kernel, bias = (weights[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = nn.functional.conv2d(inputs["image"], kernel, bias, stride=config["patch"]).flatten(2).transpose(1, 2)
    own = [(name, parameter) for name, parameter in adapter.named_parameters() if name not in head]
    trained = published(own, "synqt", "synqt.") | {name: adapter.get_parameter(name) for name in head}
    constants = {"backbone_ln_eps": base.model["norm"].eps, "own_ln_eps": SYNQT_EPS}
    return Rebuilt(model(patches).pooled, trained, inputs, constants=constants)


def dtl(golden: Golden) -> Rebuilt:
    """Logits of a trained head on the mean of the patch tokens."""
    config, inputs = golden.config, golden.leaves()
    width, depth, add = config["width"], config["depth"], tuple(config["add_after"])
    base = Vit(
        width, config["heads"], depth, int(width * config["mlp_ratio"]), config["grid"] ** 2, config["ln_eps"]
    ).to(golden.dtype)
    adapter = DtlAdapter(
        base.widths,
        depth - min(add),
        config["rank"],
        config["beta"],
        config["fusion_kernel"],
        tuple(config["collect_before"]),
        base.grid,
        add,
    )
    weights = golden.part("weight.")
    head = nn.Linear(width, config["classes"]).to(golden.dtype)
    head.load_state_dict({name: weights[f"head.{name}"] for name in ("weight", "bias")})
    side = {n: t for n, t in weights.items() if n.startswith("lora_")}
    load_block(adapter, "dtl", side, golden)
    frozen = {n: t for n, t in weights.items() if not n.startswith(("lora_", "head."))}
    base.model.load_state_dict(frozen)
    encoded = AdaptedEncoder(base, adapter)(inputs["patches"])
    # Published: the mean first, the norm behind it.
    pooled = base.model["norm"](encoded.streams[0].hidden[:, 1:].mean(1))
    trained = published(adapter.named_parameters(), "dtl") | {f"head.{n}": p for n, p in head.named_parameters()}
    constants = {"ln_eps": base.model["norm"].eps, "beta": adapter.beta}
    return Rebuilt(head(pooled), trained, inputs, constants=constants)
