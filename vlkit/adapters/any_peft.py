"""Any method of peft on the towers: ``--adapter.kind peft --adapter.config NAME|FILE``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from vlkit.adapters.facts import Reads
from vlkit.adapters.projections import check_reachable, split_projections
from vlkit.adapters.saved.mode import Saved, saved_option
from vlkit.adapters.tuning import TunedEncoder, TunedOptions
from vlkit.encoders.staged import StagedEncoder, freeze
from vlkit.errors import UserError
from vlkit.files import read_json

# Names besides peft's own types -> the config that they stand for.
PRESETS: dict[str, dict[str, Any]] = {
    "dora": {"peft_type": "LORA", "use_dora": True},
    "rslora": {"peft_type": "LORA", "use_rslora": True},
    "ia3": {"peft_type": "IA3", "feedforward_modules": []},
    # Its own default starts at random updates.
    "fourierft": {"peft_type": "FOURIERFT", "init_weights": True},
}
# Types that act on the inputs of a language model, or need calls between the steps that training does not make.
REFUSED = {
    "ADALORA": "changes its ranks between steps, which training here does not do",
    "XLORA": "combines finished adapters",
    "POLY": "needs task numbers with each example",
    "TRAINABLE_TOKENS": "trains rows of an embedding by number, which images do not have",
    **dict.fromkeys(("ADAPTION_PROMPT", "SHADOW"), "acts on the inputs of a language model"),
}


# Types that adapt convolutions too.
CONVOLUTIONS = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "HRA")


@dataclass
class PeftOptions(TunedOptions):
    """Any method of peft that works inside the blocks: DoRA, IA3, VeRA, OFT, LoHa and others."""

    kind: Literal["peft"] = "peft"
    config: str = "dora"
    """Name of a method (dora, ia3, vera, oft, boft, loha, lokr, hra, fourierft, ln_tuning, …), or a JSON file as peft
    writes it (adapter_config.json) with its options. Without target_modules every linear layer is adapted; query, key
    and value then have layers of their own, named q_proj, k_proj and v_proj."""
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""
    saved: Saved = saved_option()
    """Format of the saved activations: fp32 (unchanged), int8 or int4. The forward is always exact; the gradient is
    rounded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # The content stands in the saved adapter, so that loading it needs no file.
        self.config = json.dumps(_read(self.config), sort_keys=True)

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Freeze ``encoder`` and insert the method's modules.

        Raises:
            UserError: peft refuses the config or the tower, or the method changes the base's weights at its start.
        """
        freeze(encoder)
        encoder._frozen = False
        check_reachable(encoder)
        split_projections(encoder)
        values = json.loads(self.config)
        if not values.get("target_modules"):
            values["target_modules"] = _targets(encoder, values["peft_type"])
        base = {id(tensor): _stamp(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())}
        with torch.device("cpu"):  # imported here because it takes a second; see LoraOptions.build
            from peft import get_peft_config
            from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
        try:
            # As peft's inject_adapter_in_model, which refuses methods whose layers share tensors: those are saved here.
            config = get_peft_config(values)
            cast(Any, PEFT_TYPE_TO_TUNER_MAPPING)[config.peft_type](encoder, config, adapter_name="default")
        except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--adapter.config: {values['peft_type']} on {encoder.kind}: {reason}") from None
        new = {}
        for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
            if id(tensor) not in base:
                new[name] = tensor
            elif _stamp(tensor) != base[id(tensor)]:
                raise UserError(
                    f"--adapter.config: its start changes the base's weights ({name}), which a saved adapter does not "
                    "hold; choose another initialisation"
                )
        if not any(tensor.requires_grad for tensor in new.values()):
            raise UserError(f"--adapter.config: {values['peft_type']} has nothing to train on {encoder.kind}")
        for tensor in encoder.parameters():
            tensor.requires_grad_(id(tensor) not in base and tensor.requires_grad)
        kept = [name for name, tensor in new.items() if not tensor.requires_grad]
        return TunedEncoder(encoder, self.checkpointing, self.saved, kept)


def _read(given: str) -> dict[str, Any]:
    """The config as a dictionary with ``peft_type``: from a name, a file, or its own JSON text.

    Raises:
        UserError: it is none of these, or of a type that does not work here.
    """
    if given.lstrip().startswith("{"):
        try:
            values = json.loads(given)
        except json.JSONDecodeError as error:
            raise UserError(f"--adapter.config: is not JSON ({error})") from None
    elif given.lower() in PRESETS:
        values = PRESETS[given.lower()]
    elif Path(given).suffix or Path(given).is_file():
        values = read_json(Path(given))
    else:
        values = {"peft_type": given.upper()}
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise UserError(f"--adapter.config {given}: is not a config of peft; it has no field peft_type")
    known = known_types()
    kind = values["peft_type"].upper()
    if kind in REFUSED:
        raise UserError(f"--adapter.config: {kind} {REFUSED[kind]}; choose another method")
    if kind not in known:
        names = ", ".join(sorted({*PRESETS, *(name.lower() for name in known)}))
        raise UserError(f"--adapter.config {given[:60]}: no such file or method of peft; methods: {names}")
    return {**values, "peft_type": kind}


def known_types() -> list[str]:
    """The types of peft whose configs choose modules (others act on the inputs of a language model)."""
    with torch.device("cpu"):
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    found = {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return [kind for kind, c in found.items() if "target_modules" in c.__dataclass_fields__ and kind not in REFUSED]


def _targets(encoder: StagedEncoder, kind: str) -> list[str]:
    """Every layer that a method adapts unless its config names some."""
    wanted: tuple[Any, ...] = (nn.LayerNorm,) if kind == "LN_TUNING" else (nn.Linear,)
    if encoder.spatial and kind in CONVOLUTIONS:
        wanted = (nn.Linear, nn.Conv2d)
    # open_clip's pooling of a ResNet reads the weights of its layers without calling them.
    unused = tuple(f"{name}." for name, m in encoder.named_modules() if type(m).__name__ == "AttentionPool2d")
    found = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, wanted) and getattr(module, "groups", 1) == 1 and not name.startswith(unused)
    ]
    if not found:
        names = " or ".join(cls.__name__ for cls in wanted)
        raise UserError(f"--adapter.config: {encoder.kind} has no {names} that {kind} can adapt; choose another")
    return found


def _stamp(tensor: torch.Tensor) -> tuple[int, int]:
    """What changes when a tensor is written to or gets other values."""
    return tensor.untyped_storage()._cdata, tensor._version
