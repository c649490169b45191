"""Golden files of heads and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_sherl import load_block, published
from vlkit.tasks.contrastive import gather_pairs, symmetric_cross_entropy, triplet
from vlkit.tasks.gpo import GeneralizedPooling
from vlkit.tasks.video_retrieval.temporal import NORM_EPS, mean_frames


def generalised_pooling(golden: Golden) -> Rebuilt:
    """Pooling over sorted positions; the inputs are features [B, L, D] and lengths [B]."""
    inputs, config = golden.leaves(), golden.config
    head = GeneralizedPooling(config["d_pe"], config["d_hidden"], config["temperature"])
    load_block(head, "gpo", golden.part("weight."), golden)
    features = inputs["features"]
    mask = torch.arange(features.shape[1]) < inputs["lengths"].unsqueeze(1)
    constants = {"temperature": head.temperature, "masked_score": head.masked_value}
    return Rebuilt(head(features, mask), published(head.named_parameters(), "gpo"), inputs, constants=constants)


def hinge(golden: Golden) -> Rebuilt:
    """Bidirectional hinge ranking loss on image and text embeddings."""
    inputs = golden.leaves()
    pairs = gather_pairs(inputs["image"], inputs["text"], torch.arange(len(inputs["image"])))
    loss = triplet(pairs, golden.config["margin"], golden.config["max_violation"])
    return Rebuilt(loss.view_as(golden.tensors["output"]), inputs=inputs)


def video_text(golden: Golden) -> Rebuilt:
    """Mean of frames against texts, symmetric cross-entropy."""
    inputs = golden.leaves()
    videos = mean_frames(inputs["video"], inputs["video_mask"] != 0)
    texts = F.normalize(inputs["text"].flatten(1), dim=-1, eps=NORM_EPS)
    scale = torch.tensor(golden.config["logit_scale_log"], dtype=golden.dtype).exp()
    similarity = scale * texts @ videos.T
    loss = symmetric_cross_entropy(similarity).view_as(golden.tensors["output"])
    return Rebuilt(loss, inputs=inputs, aux={"similarity": similarity}, constants={"norm_clamp": NORM_EPS})
