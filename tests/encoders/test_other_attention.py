"""Releases of open_clip with an attention of their own: the same result, said once; LoRA does not miss it silently."""

from __future__ import annotations

import logging

import pytest
import torch
from open_clip.transformer import Attention
from torch import nn

from helpers import tiny
from vlkit.adapters import ADAPTERS
from vlkit.encoders.load import load_base
from vlkit.encoders.stage import stage_vision
from vlkit.encoders.staged import freeze
from vlkit.encoders.towers import open_clip as towers
from vlkit.errors import UserError


class OtherAttention(nn.MultiheadAttention):
    """An attention of a class that is not torch's."""


OtherAttention.__module__ = "open_clip.attention"


def test_another_attention_runs_the_librarys_own_block(caplog: pytest.LogCaptureFixture) -> None:
    usual, other = freeze(stage_vision(tiny.tiny_clip())), freeze(stage_vision(tiny.tiny_clip()))
    for block in other.model.transformer.resblocks:
        block.attn.__class__ = OtherAttention
    del other.model.transformer.batch_first  # as in releases without this option; the test's blocks have it
    towers._say_slow.cache_clear()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        torch.testing.assert_close(other(tiny.images(2)), usual(tiny.images(2)), rtol=1e-5, atol=1e-5)
        usual(tiny.images(2))
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "open_clip's attention is OtherAttention instead of torch's MultiheadAttention"
    ]


@pytest.mark.parametrize("kind", ["lora", "peft"])
def test_lora_refuses_an_attention_that_it_cannot_reach(kind: str) -> None:
    tower = stage_vision(tiny.tiny_clip())
    tower.model.transformer.resblocks[1].attn = Attention(tiny.WIDTH, 2)
    with pytest.raises(UserError, match=r"attention Attention: query, key and value are one parameter"):
        ADAPTERS[kind]().build(tower)


def test_an_architecture_without_images_is_no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    config = open_clip.get_model_config("ViT-B-32")
    del config["vision_cfg"]
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    with pytest.raises(UserError, match="ViT-B-32 is not a model of images and texts"):
        load_base("ViT-B-32")
