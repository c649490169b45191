"""CLIP and SigLIP in the format of transformers: staged towers equal the library's own forward; wrong folders."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from helpers import tiny
from helpers.contrastive import END, KINDS, contrastive_model, save_contrastive, save_naflex
from helpers.towers import train
from vlkit.adapters import ADAPTERS
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.data.transforms import image_transform
from vlkit.encoders import hub
from vlkit.encoders.bases import ClipBase, fingerprint
from vlkit.encoders.load import load_base
from vlkit.encoders.staged import StagedEncoder, run_blocks
from vlkit.encoders.towers.hf_contrastive import HfClipText
from vlkit.errors import UserError

TEXTS = ["a red dog", "a"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a folder as transformers saves it."""
    found = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in found.items():
        save_contrastive(folder, kind)
    return found


@pytest.fixture(scope="module")
def bases(folders: dict[str, Path]) -> dict[str, ClipBase]:
    return {kind: load_base(f"hf:{folder}") for kind, folder in folders.items()}


def end(encoder: StagedEncoder, x: torch.Tensor) -> Any:
    return run_blocks(encoder, encoder.embed(x), 0, encoder.depth)


@pytest.mark.parametrize("kind", KINDS)
def test_staged_towers_equal_the_librarys_forward(bases: dict[str, ClipBase], kind: str) -> None:
    base, library = bases[kind], contrastive_model(kind)
    pixels, ids = tiny.images(2), base.tokenize(TEXTS)
    assert ids[:, :4].tolist() == [[3, 5, 4, END], [3, END, 0, 0]] and ids.shape == (2, tiny.CONTEXT_LENGTH)
    near = {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        images, texts = library.get_image_features(pixels), library.get_text_features(ids)
        torch.testing.assert_close(base.image(pixels), images.pooler_output, **near)
        trimmed = base.text.trim(ids)
        assert trimmed.shape[1] == (4 if kind == "clip" else tiny.CONTEXT_LENGTH)
        torch.testing.assert_close(base.text(trimmed), texts.pooler_output, **near)
        last = images.last_hidden_state
        expected = library.vision_model.post_layernorm(last) if kind == "clip" else last
        stream = end(base.image, pixels)
        torch.testing.assert_close(base.image.tokens(stream), expected, **near)
        torch.testing.assert_close(base.text.tokens(end(base.text, ids)), texts.last_hidden_state, **near)
        for tower, x in ((base.image, pixels), (base.text, ids)):
            before_last = run_blocks(tower, tower.embed(x), 0, tower.depth - 1)
            torch.testing.assert_close(tower.finish_pooled(before_last), tower(x), **near)
    assert base.image.grid(stream) == (4, 4)
    scale, bias = library.logit_scale.item(), None if kind == "clip" else pytest.approx(library.logit_bias.item())
    assert base.logit_scale == pytest.approx(scale) and base.logit_bias == bias
    assert base.image.out_dim == base.text.out_dim == (tiny.EMBED_DIM if kind == "clip" else tiny.WIDTH)


def test_tokens_in_the_joint_space_pool_to_the_embedding(bases: dict[str, ClipBase]) -> None:
    base = bases["clip"]
    pixels, ids = tiny.images(2), base.tokenize(TEXTS)
    with torch.no_grad():
        joint = base.image.project(base.image.tokens(end(base.image, pixels)))
        torch.testing.assert_close(joint[:, 0], base.image(pixels))
        for kind, place in (("clip", base.text.embed(ids).summary), ("siglip", torch.tensor([11, 11]))):
            text = bases[kind].text
            joint = text.project(text.tokens(end(text, ids)))
            torch.testing.assert_close(joint[torch.arange(2), place], text(ids))
    assert bases["siglip"].image.joint_dim is None, "its head pools all tokens"
    assert base.text.embed(ids).mask.sum(1).tolist() == [4, 2]
    assert bases["siglip"].text.embed(ids).mask.sum(1).tolist() == [5, 3], "and the last position, which is pooled"


def test_the_first_configurations_pool_at_the_largest_id() -> None:
    from transformers import CLIPTextModelWithProjection

    config = contrastive_model("clip", eos_token_id=2).config.text_config
    model = CLIPTextModelWithProjection(config).eval()
    ids = torch.tensor([[3, 15, 2, 0], [15, 2, 15, 4]])
    text = HfClipText(model)
    with torch.no_grad():
        torch.testing.assert_close(text(ids), model(ids).text_embeds, rtol=1e-5, atol=1e-5)
    assert text.embed(ids).summary.tolist() == [1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_identity_and_preprocessing_come_from_the_folder(
    bases: dict[str, ClipBase], folders: dict[str, Path], kind: str
) -> None:
    base, folder = bases[kind], folders[kind]
    assert base.name == f"hf:{folder}" and base.identity["image"]["library"] == "transformers"
    assert base.identity["text"]["fingerprint"] == fingerprint(base.text.model)
    assert load_base(base.name).identity == base.identity
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    expected = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(image_transform(base.preprocess)(image), expected, rtol=1e-4, atol=1e-4)
    assert base.preprocess.resize_mode == ("shortest" if kind == "clip" else "squash")


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_size(bases: dict[str, ClipBase], folders: dict[str, Path], kind: str) -> None:
    base, pixels = load_base(f"hf:{folders[kind]}", image_size=48), tiny.images(2, 48)
    with torch.no_grad():
        expected = contrastive_model(kind).get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
        torch.testing.assert_close(base.image(pixels), expected, rtol=1e-5, atol=1e-5)
    assert base.preprocess.size == (48, 48) and base.image.grid(base.image.embed(pixels)) == (6, 6)
    assert base.identity["image"]["image_size"] == 48
    assert base.identity["image"]["fingerprint"] != bases[kind].identity["image"]["fingerprint"]
    with pytest.raises(UserError, match="at 50 pixels: the side must be a multiple of 8"):
        load_base(f"hf:{folders[kind]}", image_size=50)


@pytest.mark.parametrize("side", [None, 64])
def test_siglip2_for_any_shape_reads_squares(side: int | None, tmp_path: Path) -> None:
    """Equal to the library's forward on square images, with its own resizing of the position embeddings."""
    library = save_naflex(tmp_path)
    base = load_base(f"hf:{tmp_path}", image_size=side)
    side = side or 40
    grid = base.image.grid(base.image.embed(tiny.images(1, side)))
    assert base.preprocess.size == (side, side) and grid == (side // 8, side // 8)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    ids = base.tokenize(TEXTS)
    with torch.no_grad():
        patches = processor(picture, return_tensors="pt", max_num_patches=(side // 8) ** 2)
        images = library.get_image_features(**patches).pooler_output
        found = base.image(image_transform(base.preprocess)(picture)[None])
        torch.testing.assert_close(found, images, rtol=1e-5, atol=1e-5)
        texts = library.get_text_features(ids).pooler_output
        torch.testing.assert_close(base.text(ids), texts, rtol=1e-5, atol=1e-5)
    assert base.logit_bias == pytest.approx(library.logit_bias.item())
    with pytest.raises(UserError, match="at 50 pixels: the side must be a multiple of 8"):
        load_base(f"hf:{tmp_path}", image_size=50)


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_trains_on_both_towers(bases: dict[str, ClipBase], kind: str, tower: str) -> None:
    x = tiny.images(3) if tower == "image" else bases[kind].tokenize(["a red dog", "a", "a cube"])
    methods = {
        **{name: options() for name, options in ADAPTERS.items()},
        "sherl tokens": SherlOptions(handoff="tokens"),
    }
    for name, options in methods.items():
        torch.manual_seed(0)
        model = options.build(deepcopy(getattr(bases[kind], tower)), "pooled").eval()
        before = model(x).pooled.detach()
        unused = train(model, x, "pooled")
        changed = not torch.equal(model(x).pooled, before)
        assert changed == (name != "linear"), name
        # A last block or pooler that reads one token leaves keys and prompts of that block without gradient.
        assert len(unused) < len([p for p in model.parameters() if p.requires_grad]) or name == "linear", name


def spoil(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_be_a_base_is_explained(folders: dict[str, Path], tmp_path: Path) -> None:
    def message(of: Path | str, **options: Any) -> str:
        with pytest.raises(UserError) as raised:
            load_base(f"hf:{of}", **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    def copy(name: str, without: tuple[str, ...] = ()) -> Path:
        return Path(shutil.copytree(folders["clip"], tmp_path / name, ignore=shutil.ignore_patterns(*without)))

    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "open_clip_config.json").write_text("{}")
    found = message(empty)
    for part in ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer files", "local-dir:"):
        assert part in found
    assert "lacks preprocessor_config.json; " in message(copy("a", ("preprocessor_config.json",)))
    no_words = copy("b", ("tokenizer*",))
    assert "lacks tokenizer files; " in message(no_words)
    assert load_base(f"hf:{no_words}", tokenizer=folders["clip"]).tokenize(["a"])[0, 0] == 3

    other = copy("d")
    spoil(other, model_type="bert")
    assert "model_type 'bert' is none of clip, siglip" in message(other) and f"timm:NAME+hf:{other}" in message(other)
    assert "cannot be loaded" in message("nobody/nothing")

    damaged = copy("e")
    (damaged / "model.safetensors").write_bytes(b"not tensors")
    assert "cannot be loaded" in message(damaged)
    processor = copy("f")
    path = processor / "preprocessor_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "resample": 0}))
    assert "resample 0" in message(processor)
    path.write_text(json.dumps({**values, "crop_size": {"height": 64, "width": 64}}))
    assert "makes images of 64 x 64 pixels and its vision tower reads 32 x 32" in message(processor)
