"""Golden files of SHERL blocks: taps in, merged state out."""

from __future__ import annotations

from torch import Tensor, nn

from helpers.parity_file import Golden, Rebuilt
from vlkit.adapters.published.names import import_published, to_upstream
from vlkit.adapters.sherl.blocks import LinearHead, LinearNormReducer
from vlkit.adapters.sherl.conv import ConvSherlAdapter
from vlkit.adapters.sherl.pooled import EPS
from vlkit.adapters.sherl.pooled_lean import LeanPooledSherlAdapter
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import Stream

PooledBlock = LeanPooledSherlAdapter
"""The implementation that is checked; tests also put the plain one here."""


def token_block(golden: Golden, flavour: str) -> Rebuilt:
    """A block over tokens or a grid: flavours ``text``, ``gated``, ``mdetr`` and ``conv``."""
    inputs = golden.leaves()
    taps = _taps(inputs)
    channels = 1 if flavour == "conv" else -1
    sizes = {
        "widths": tuple(tap.hidden.shape[channels] for tap in taps),
        "width": inputs["last"].shape[channels],
        "hidden": golden.config["hidden"],
        "layers": tuple(range(len(taps))),
    }
    block = ConvSherlAdapter(**sizes) if flavour == "conv" else SherlAdapter(**sizes, flavour=flavour, dropout=0.0)
    load_block(block, f"sherl/{flavour}", golden.part("weight."), golden)
    return Rebuilt(
        output=block(taps, inputs["last"]),
        weights=published(block.named_parameters(), f"sherl/{flavour}"),
        inputs=inputs,
        buffers=published(block.named_buffers(), f"sherl/{flavour}"),
        constants=sherl_constants(block),
    )


def pooled_block(golden: Golden) -> Rebuilt:
    """A block in the joint space, over a text tower (mask and position given) or a vision tower (token 0)."""
    inputs = golden.leaves()
    if golden.config["base"] not in ("position", "token 0"):
        raise ValueError(f"config base {golden.config['base']!r}: position or token 0 is known")
    summary = inputs["position"] if golden.config["base"] == "position" else inputs["last"].new_zeros(1).long()
    mask = inputs["mask"] != 0 if "mask" in inputs else None
    taps = _taps(inputs, mask, summary.expand(len(inputs["last"])))
    block = PooledBlock(
        widths=tuple(tap.hidden.shape[-1] for tap in taps),
        out_dim=inputs["last"].shape[-1],
        hidden=golden.config["hidden"],
        layers=tuple(range(len(taps))),
        base_gate=golden.config["spatial_base_gate"],
    )
    load_block(block, "sherl/pooled", golden.part("weight."), golden)
    output = block(taps, inputs["last"].squeeze(1))
    constants = {"l1_eps": EPS, "l2_eps": block.aggregator.eps, "gate_temperature": block.gate_temperature}
    return Rebuilt(
        output.view_as(golden.tensors["output"]),
        published(block.named_parameters(), "sherl/pooled"),
        inputs,
        constants=constants,
    )


def load_block(module: nn.Module, table: str, weights: dict[str, Tensor], golden: Golden) -> None:
    """Load published weights through the importer; every key must be used and every weight of ``module`` be given."""
    module.to(golden.dtype).train(golden.training)
    module.load_state_dict(import_published(table, weights), strict=True)


def published(named: object, table: str, prefix: str = "") -> dict[str, Tensor]:
    """Our tensors under their published names, with ``prefix`` in front."""
    return {f"{prefix}{to_upstream(table, name)}": tensor for name, tensor in named}


def sherl_constants(block: SherlAdapter | ConvSherlAdapter) -> dict[str, object]:
    """The numbers a token block works with, under the names that golden configs give them."""
    constants: dict[str, object] = {"l1_eps": block.aggregator.eps, "l2_eps": block.aggregator.eps}
    constants |= {"gate_temperature": block.gate.temperature, "gate": f"tanh(g/{block.gate.temperature:g})"}
    reducer, head = block.reducers[0], block.head
    if isinstance(reducer, LinearNormReducer):
        constants["reduce_ln_eps"] = reducer.norm.eps
    if isinstance(head, LinearHead) and head.norm is not None:
        constants["out_ln_eps"] = head.norm.eps
    if block.aggregator.post is not None:
        constants["guidance_ln_eps"] = block.aggregator.post.norm.eps
    norms = {(norm.eps, norm.momentum) for norm in block.modules() if isinstance(norm, nn.BatchNorm2d)}
    if norms:
        ((constants["bn_eps"], constants["bn_momentum"]),) = norms
    return constants


def _taps(inputs: dict[str, Tensor], mask: Tensor | None = None, summary: Tensor | None = None) -> list[Stream]:
    count = sum(name.startswith("features.") for name in inputs)
    return [Stream(inputs[f"features.{i}"], mask, summary) for i in range(count)]
