"""Names of published checkpoints, one table per flavour; used by :mod:`vlkit.adapters.published.names`.

Each row is ``(published name, vlkit name)`` of a module (with its weights and buffers) or of a parameter. ``*`` stands
for a number that stays the same, ``*+1`` for one that is larger by 1 in vlkit, ``**`` for any path. The first matching
row wins.
"""

from __future__ import annotations

_TOKEN = [
    ("gate_params", "gate.gamma"),
    ("guide_block.fc_attn", "aggregator.score"),
]
_GATED = [
    *_TOKEN,
    ("hor_block.*.fc1", "reducers.*.proj"),
    ("hor_block.*.fc2", "reducers.*.up"),
    ("hor_block.*.fc3", "reducers.*.gate"),
    ("fc_out", "head.proj"),
]
_UNIPT = [
    ("projection_layer.0", "post.proj"),
    ("projection_layer.1", "post.norm"),
    ("upsample_layer.1", "head.proj"),
    ("gate_layer", "aggregator.confidence"),
]


def _unipt_mdetr(stack: str) -> list[tuple[str, str]]:
    return [
        (f"side_downsample0_{stack}.0", "reducers.0.proj"),
        (f"side_downsample0_{stack}.1", "reducers.0.norm"),
        (f"side_downsamples_{stack}.*.0", "reducers.*+1.proj"),
        (f"side_downsamples_{stack}.*.1", "reducers.*+1.norm"),
        (f"side_projection_{stack}.0", "post.up"),
        (f"side_projection_{stack}.2", "post.down"),
        (f"side_projection_{stack}.3", "post.norm"),
        (f"side_gate_layer_{stack}", "aggregator.confidence"),
    ]


_R2_TEMPORAL = [
    *[
        (f"{published}.{letter}", f"{own}.{name}")
        for published, own in (("cross_att", "cross"), ("self_att", "itself"))
        for letter, name in (("q", "query"), ("k", "key"), ("v", "value"), ("m", "out"))
    ],
    ("cross_att_norm", "cross_norm"),
    ("self_att_norm", "itself_norm"),
    ("ffn.mapping.*", "inner.*"),
    ("ffn_norm", "inner_norm"),
]
_R2_BLOCK = [
    ("gate", "gate"),
    ("scale", "scale"),
    ("video_map.*", "video_map.*"),
    ("query_map.*", "query_map.*"),
    ("v_map", "video_key"),
    ("q_map", "query_key"),
    *[(f"tem.{published}", f"temporal.{own}") for published, own in _R2_TEMPORAL],
]


def _r2_pyramid() -> list[tuple[str, str]]:
    """Published: every halving is a run of five modules, of which the second and the fourth have weights."""
    return [
        (f"pyramid.blocks.*.{5 * step + place}", f"heads.pyramid.levels.*.{step}.{name}")
        for step in range(8)
        for place, name in ((1, "conv"), (3, "norm"))
    ]


TABLES: dict[str, list[tuple[str, str]]] = {
    "sherl/text": [
        *_TOKEN,
        ("hor_block.*.fc.0", "reducers.*.proj"),
        ("hor_block.*.fc.1", "reducers.*.norm"),
        ("fc_out.1", "head.proj"),
        ("fc_out.2", "head.norm"),
    ],
    "sherl/gated": _GATED,
    "sherl/t5": [
        *[(f"side_mtsa_block.{published}", f"adapter.{own}") for published, own in _GATED],
        ("final_side_layer_norm", "norm"),
    ],
    "sherl/mdetr": [
        *_TOKEN,
        ("guide_block.mlp.0", "aggregator.post.up"),
        ("guide_block.mlp.2", "aggregator.post.down"),
        ("guide_block.mlp.3", "aggregator.post.norm"),
        ("hor_block.*.fc", "reducers.*.proj"),
        ("hor_block.*.norm", "reducers.*.norm"),
        ("fc_out", "head.proj"),
        ("norm_out", "head.norm"),
    ],
    "sherl/conv": [
        *_TOKEN,
        ("hor_block.*.conv.0", "reducers.*.proj"),
        ("hor_block.*.conv.1", "reducers.*.norm"),
        ("conv_out.0", "head.proj"),
        ("conv_out.1", "head.norm"),
    ],
    "sherl/pooled": [
        ("guide_block.layer_attn", "aggregator.score"),
        ("guide_block.spatial_attn.*", "token_scores.*"),
        ("guide_block.gate_parameters", "base_gate"),
        ("hor_block.*.fc", "reducers.*"),
        ("hor_block_last.fc", "guide_reducer"),
        ("fc_out", "head.proj"),
    ],
    "gpo": [("gpo.gru", "gru"), ("gpo.linear", "score")],
    "unipt/text": [
        *_UNIPT,
        ("downsample_layers.*.0", "reducers.*.proj"),
        ("downsample_layers.*.1", "reducers.*.norm"),
    ],
    "unipt/conv": [
        *_UNIPT,
        ("downsample_layers.*.0", "reducers.*.proj"),
        ("downsample_layers.*.1", "reducers.*.norm"),
        ("identity_layers.*.0", "reducers.*.guide"),
    ],
    "unipt/pooled": [
        ("downsample_layers.*.1", "reducers.*"),
        ("downsample_layer.1", "anchor_reducer"),
        ("upsample_layer.1", "head.proj"),
        ("gate_layer", "confidence"),
    ],
    "unipt/joint": [
        ("side_first_downsample_l.0", "reducers.0.proj"),
        ("side_first_downsample_l.1", "reducers.0.norm"),
        ("side_downsamples_l.*.0", "reducers.*+1.proj"),
        ("side_downsamples_l.*.1", "reducers.*+1.norm"),
        ("side_projection_l.0", "post.up"),
        ("side_projection_l.2", "post.down"),
        ("side_projection_l.3", "post.norm"),
        ("side_gate_layer_l", "aggregator.confidence"),
        ("side_final_upsample_l.0", "head"),
    ],
    "unipt/mdetr_encoder": _unipt_mdetr("encoder"),
    "unipt/mdetr_decoder": [
        *_unipt_mdetr("decoder"),
        ("side_projection_crosser.*.0", "fusions.*.proj"),
        ("side_projection_crosser.*.1", "fusions.*.norm"),
        ("side_final_upsample.1", "head.proj"),
        ("side_final_upsample.2", "head.norm"),
    ],
    "lst/t5": [
        ("side_first_downsample", "first"),
        ("side_gate_params.*", "rungs.*.gate"),
        ("side_downsamples.*", "rungs.*"),
        ("side_block.*.**", "blocks.*.**"),
        ("final_side_layer_norm", "norm"),
    ],
    "lst/t5_out": [("side_final_upsample", "up")],
    "lst/joint": [
        ("side_first_downsample_l", "ladder.first"),
        ("side_gate_params_l.*", "ladder.rungs.*.gate"),
        ("side_downsamples_l.*", "ladder.rungs.*"),
        ("side_block_l.*.**", "ladder.blocks.*.**"),
        ("side_final_upsample_l", "up"),
    ],
    "vqt": [("transformer.encoder.query_prompt_embeddings", "queries")],
    "synqt": [
        ("q", "seeds"),
        ("feat_scale", "feat_scale"),
        ("prompt_ffn.*.mlp.fc1", "blocks.*.first.down"),
        ("prompt_ffn.*.mlp.fc2", "blocks.*.first.up"),
        ("qsm_block.*.norm1", "blocks.*.attention_norm"),
        ("qsm_block.*.norm2", "blocks.*.mlp_norm"),
        ("qsm_block.*.attn_scale", "blocks.*.attn_scale"),
        ("qsm_block.*.ffn_scale", "blocks.*.ffn_scale"),
        ("qsm_block.*.mlp.mlp.fc1", "blocks.*.mlp.down"),
        ("qsm_block.*.mlp.mlp.fc2", "blocks.*.mlp.up"),
        ("qsm_block.*.attn.q_norm", "blocks.*.attention.query_norm"),
        ("qsm_block.*.attn.kv_norm", "blocks.*.attention.key_norm"),
        *[
            (f"qsm_block.*.attn.{published}.mlp.fc{number}", f"blocks.*.attention.{own}.{map_}")
            for published, own in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("proj", "out"))
            for number, map_ in ((1, "down"), (2, "up"))
        ],
        ("out_norm", "mix.norm"),
        ("mlp.mlp.fc1", "mix.refine.down"),
        ("mlp.mlp.fc2", "mix.refine.up"),
        ("out_combine.get_weight.fc1", "mix.weights"),
        ("head_norm", "mix.final_norm"),
    ],
    "r2/temporal": _R2_TEMPORAL,
    "r2/block": _R2_BLOCK,
    "r2": [
        *[(f"adapter.{published}", f"block.{own}") for published, own in _R2_BLOCK],
        ("coef", "heads.coefficients"),
        *_r2_pyramid(),
        ("pooling.att", "heads.pooling.score"),
        ("class_head.module.1", "heads.classes.first"),
        ("class_head.module.3", "heads.classes.second"),
        ("coord_head.module.1", "heads.boundaries.first"),
        ("coord_head.module.3", "heads.boundaries.second"),
    ],
    "dtl": [
        ("lora_dict.*.lora_A", "reads.*.down.weight"),
        ("lora_dict.*.lora_B", "reads.*.up.weight"),
        ("lora_fusion", "fusions.0"),
    ],
}
"""Flavour -> rows. A row names a module (with its weights and buffers) or a parameter."""

OPTIONAL = {
    "guide_block.gate_parameters",
    "side_gate_params.*",
    "side_gate_params_l.*",
    "side_downsamples.*",
    "side_downsamples_l.*",
    "lora_fusion",
    "gate",
    "adapter.gate",
    "coef",
    "coord_head.module.1",
    "coord_head.module.3",
    *(f"tem.{published}" for published, _ in _R2_TEMPORAL),
    *(published for published, _ in _r2_pyramid()),
}
"""Published names that a file of their flavour may lack, because an option removes these parts."""

UNUSED: dict[str, str] = {"synqt": r"pre_norm\.\d+\.(weight|bias)|out_combine\.weight"}
"""Flavour -> pattern of published tensors that the published forward never uses; they are left out."""
