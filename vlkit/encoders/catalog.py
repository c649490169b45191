"""List which architectures can be staged, using tensor shapes only: no weights are allocated or downloaded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import open_clip
import transformers
from open_clip.model import _build_text_tower, _build_vision_tower
from torch import nn

from vlkit.encoders.contrastive_families import CONTRASTIVE, Contrastive
from vlkit.encoders.families import Family, family_of_kind, known_config, known_names
from vlkit.encoders.hub import offline_text_cfg, quiet
from vlkit.encoders.load_contrastive import SCHEME, stage_pair
from vlkit.encoders.shapes_only import shapes_only
from vlkit.encoders.stage import stage_t5_decoder, stage_text, stage_vision
from vlkit.errors import UserError

STAGED = "staged"
NO_PAIR = "none (not a model of images and texts)"
NO_VISION = "none (text model)"


def catalog() -> Iterator[dict[str, str]]:
    """One row per known base: every open_clip architecture, the text families, and one model of each
    contrastive family of transformers.

    Yields:
        ``name``, ``library``, and ``vision`` and ``text``: ``"staged"`` or the reason why not.
    """
    verdicts: dict[str, str] = {}
    for name in open_clip.list_models():
        config = cast(dict[str, Any], open_clip.get_model_config(name))
        row = {"name": name, "library": "open_clip"}
        for tower, judge in (("vision", judge_vision), ("text", judge_text)):
            if not {"vision_cfg", "text_cfg"} <= config.keys():
                row[tower] = NO_PAIR
                continue
            # Many architectures share a tower, so verdicts are cached.
            key = tower + json.dumps([config[f"{tower}_cfg"], config["embed_dim"]], sort_keys=True)
            if key not in verdicts:
                verdicts[key] = judge(config)
            row[tower] = verdicts[key]
        yield row
    for name in known_names():
        yield {"name": name, "library": "transformers", "vision": NO_VISION, "text": judge_text_family(name)}
    for family in CONTRASTIVE:
        verdict = judge_contrastive(family)
        yield {"name": SCHEME + family.example, "library": "transformers", "vision": verdict, "text": verdict}


def judge_vision(config: dict[str, Any]) -> str:
    """``"staged"``, or the reason why the vision tower of an open_clip configuration cannot be staged."""

    def build() -> None:
        stage_vision(_build_vision_tower(config["embed_dim"], copy.deepcopy(config["vision_cfg"])))

    return _verdict(build)


def judge_text(config: dict[str, Any]) -> str:
    """``"staged"``, or the reason why the text tower of an open_clip configuration cannot be staged."""
    name = config["text_cfg"].get("hf_model_name")
    if name and name not in known_names():
        return f"built from {name!r} on the hub, whose configuration vlkit does not know"
    with offline_text_cfg(config["text_cfg"]) as text_cfg:
        return _verdict(lambda: stage_text(_build_text_tower(config["embed_dim"], cast(Any, text_cfg))))


def judge_text_family(name: str) -> str:
    """``"staged"``, or the reason why a known transformers text model (T5: with decoder) cannot be staged."""
    config = known_config(name)
    family = cast(Family, family_of_kind(config.model_type))  # every known name is of a family

    def build() -> None:
        model: nn.Module = getattr(transformers, family.generator or family.model)(config)
        if family.generator:
            stage_t5_decoder(model)
        stage_text(model)

    return _verdict(build)


def judge_contrastive(family: Contrastive) -> str:
    """``"staged"``, or the reason why a contrastive model of transformers cannot be staged."""

    def build() -> None:
        kind: Any = getattr(transformers, family.model)
        ends = {"bos_token_id": 0, "eos_token_id": 1}  # the library warns of its own defaults
        stage_pair(family, kind(kind.config_class(text_config=ends)), 0)

    return _verdict(build)


def _verdict(build: Callable[[], object]) -> str:
    try:
        with quiet(), shapes_only():
            build()
    except UserError as error:
        return str(error)
    except Exception as error:  # the library cannot build its own architecture; report that
        return (
            f"its library cannot build it ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        )
    return STAGED
