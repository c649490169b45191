"""Golden files of the CLIP-ViL joint encoder: BERT layers over text and visual tokens, the last one re-consumes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_sherl import load_block, published, sherl_constants
from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import StagedEncoder, Stream


class JointEncoder(StagedEncoder):
    """The frozen joint encoder; its input is (text states [B, N, D], their additive mask, visual features [B, V, F]).

    Visual tokens are projected and normed, then follow the text tokens; they are never masked.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        width = config["width"]
        bert = BertConfig(
            hidden_size=width,
            num_attention_heads=config["heads"],
            intermediate_size=config["intermediate"],
            layer_norm_eps=config["backbone_ln_eps"],
            hidden_act={"exact (erf) GELU": "gelu"}[config["activation"]],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        norm = nn.LayerNorm(width, eps=bert.layer_norm_eps)
        self.model = nn.ModuleDict(
            {
                "visn_fc": nn.ModuleDict(
                    {"visn_fc": nn.Linear(config["visual_feat_dim"], width), "visn_layer_norm": norm}
                ),
                "layer": nn.ModuleList(BertLayer(bert) for _ in range(config["layers"])),
            }
        )
        self.depth, self.out_dim, self.token_dim = config["layers"], width, width
        self.widths = (width,) * (self.depth + 1)
        self.stages = tuple(range(self.depth + 1))

    def embed(self, x: tuple[Tensor, Tensor, Tensor]) -> Stream:
        text, text_mask, visual = x
        project = self.model["visn_fc"]
        visual = project["visn_layer_norm"](project["visn_fc"](visual))
        mask = nn.functional.pad(text_mask, (0, visual.shape[1]))
        return Stream(torch.cat([text, visual], dim=1), extras={"attention_mask": mask})

    def block(self, i: int, stream: Stream) -> Stream:
        return stream.replace(hidden=self.model["layer"][i](stream.hidden, **stream.extras))

    def tokens(self, stream: Stream) -> Tensor:
        return stream.hidden


def joint_encoder(golden: Golden) -> Rebuilt:
    """All layers but the last are tapped (and the joint embeddings); the frozen last layer re-consumes the result."""
    config, inputs = golden.config, golden.leaves()
    base = JointEncoder(config)
    layers = tuple(range(base.depth))
    widths = base.widths[:-1]
    model = AdaptedEncoder(base, SherlAdapter(widths, config["width"], config["hidden"], layers, 1, "gated"))
    weights = golden.part("weight.")
    base.to(golden.dtype).model.load_state_dict({n: t for n, t in weights.items() if not n.startswith("side_block.")})
    load_block(model.adapter, "sherl/gated", golden.part("weight.side_block."), golden)
    encoded = model((inputs["lang"], inputs["lang_mask"], inputs["visual"]))
    constants = {**sherl_constants(model.adapter), "side_ln_eps": None}
    constants["backbone_ln_eps"] = base.model["visn_fc"]["visn_layer_norm"].eps
    return Rebuilt(
        encoded.tokens,
        published(model.adapter.named_parameters(), "sherl/gated", "side_block."),
        inputs,
        constants=constants,
    )
