"""LST's Fisher start: what it copies, what it leaves alone, when it is made, and what it refuses."""

from __future__ import annotations

import gc
import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vlkit.adapters.lst.method
from helpers import tiny
from helpers.scripts import call
from vlkit.adapters.base import AdaptedEncoder, trained_state
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.lst.pruning import prune_
from vlkit.data.manifest import write_dataset
from vlkit.drawn.captions import captions
from vlkit.drawn.draw import draw
from vlkit.drawn.scenes import sample_scene
from vlkit.encoders.bases import ClipBase, Preprocess, clip_base
from vlkit.engine import fit
from vlkit.engine.checkpoint import STATE_FILE
from vlkit.engine.config import RunConfig
from vlkit.engine.distributed import make_fabric
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Run
from vlkit.engine.run_folder import RunFolder
from vlkit.errors import UserError
from vlkit.tasks.contrastive import example_losses, gather_pairs, info_nce
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.two_tower import HeadOptions, TwoTower

TRAIN = "tasks/retrieval/train.py"
FISHER = ("--adapter.kind", "lst", "--adapter.start", "fisher", "--adapter.fisher_examples", 6)


@dataclass
class Config(RunConfig):
    """What the start needs of a run's flags."""

    device: Any = "cpu"
    adapter: Any = field(default_factory=lambda: LstOptions(reduction=2, start="fisher", fisher_examples=6))


class Pairs:
    """Images with token ids."""

    def __init__(self, count: int = 8) -> None:
        self.pixels, self.ids = tiny.images(count), tiny.clip_ids(tuple(range(3, 3 + count)))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        return self.pixels[index], self.ids[index], index


def loss_of(forward: Any, batch: list[Tensor], epoch: float) -> Tensor:
    pixels, ids, groups = batch
    images, texts, scale, _ = forward(pixels, ids)
    return info_nce(gather_pairs(images, texts, groups), scale)


def tiny_base() -> ClipBase:
    named = {"library": "test", "name": "tiny", "weights": "random"}
    preprocess = Preprocess((32, 32), (0.5,) * 3, (0.2,) * 3)
    return clip_base(tiny.tiny_clip(), "tiny test", lambda texts: tiny.clip_ids((4,) * len(texts)), preprocess, named)


def model_with(options: Any = None) -> TwoTower:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(tiny_base(), options or Config().adapter, HeadOptions())


def start(
    model: nn.Module,
    count: int = 8,
    apart: Any = example_losses,
    batch_size: int = 4,
    folder: Any = "none",
    **flags: Any,
) -> None:
    config = Config(**flags)
    run = Run(config, "test", make_fabric("cpu", config.precision), RunFolder(folder))
    prepare(run, config.adapter, model, lambda: Pairs(count), None, loss_of, batch_size, apart)


def side_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained_state(model).items() if ".blocks." in name}


def test_starts_from_squared_gradients_of_single_examples() -> None:
    """Against plain code: the gradient that each example's own embeddings have in the loss of its batch."""
    model, expected = model_with(), model_with()
    start(model, count=4)

    towers = [expected.image, expected.text]
    weights = [dict(tower.base.model.named_parameters()) for tower in towers]
    for own in weights:
        for weight in own.values():
            weight.requires_grad_(True)
    # All four pairs are one batch, so their order does not matter; all are examples, though six may be.
    pixels, ids, groups = Pairs(4).pixels, Pairs(4).ids, torch.arange(4)
    sums = [{name: torch.zeros_like(weight) for name, weight in own.items()} for own in weights]
    for chosen in range(4):
        images, texts = (nn.functional.normalize(t.base(x), dim=-1) for t, x in zip(towers, (pixels, ids), strict=True))
        only = torch.arange(4).unsqueeze(1) == chosen
        pairs = gather_pairs(*(torch.where(only, one, one.detach()) for one in (images, texts)), groups)
        loss = info_nce(pairs, expected.logit_scale.exp())
        flat = [weight for own in weights for weight in own.values()]
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True))
        for own in sums:
            for name in own:
                gradient = next(gradients)
                own[name] += 0 if gradient is None else gradient.square()
    magnitude = side_weights(expected)
    for tower, importance in zip(towers, sums, strict=True):
        prune_(tower.adapter.ladder.blocks, tower.base, importance)

    wanted, found = side_weights(expected), side_weights(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for tower in ("image", "text"):
        assert any(not torch.equal(found[name], magnitude[name]) for name in found if name.startswith(tower))


def test_units_whose_gradients_dominate_are_kept() -> None:
    model = model_with()
    expand = model.image.base.transformer_block(1).mlp.c_fc
    chosen = torch.arange(1, len(expand.weight), 2)

    def apart(loss_of: Any, forward: Any, batch: list[Tensor]) -> list[Tensor]:
        return [
            1e-9 * (sum(forward(*batch[:2])[0].flatten()) + forward(*batch[:2])[1].sum()) + expand.weight[chosen].sum()
        ]

    start(model, apart=apart, batch_size=1)
    narrow = model.image.adapter.ladder.blocks["1"].mlp.c_fc
    of = [expand.bias.tolist().index(value) for value in narrow.bias.tolist()]
    assert of == chosen.tolist()


def test_nothing_else_is_touched_or_kept() -> None:
    model = model_with().train()
    adapted, before = (model.image, model.text), deepcopy(model.state_dict())
    make_fabric("cpu")
    gc.collect()
    held = sum(one.numel() for one in gc.get_objects() if issubclass(type(one), Tensor))
    start(model)

    assert (model.image, model.text) == adapted and all(isinstance(tower, AdaptedEncoder) for tower in adapted)
    assert model.training and not model.image.base.training
    assert not any(p.requires_grad for tower in adapted for p in tower.base.parameters())
    assert all(p.grad is None for p in model.parameters())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".ladder.blocks." in name for name in changed)
    gc.collect()
    assert sum(one.numel() for one in gc.get_objects() if issubclass(type(one), Tensor)) <= held


def test_a_failure_puts_everything_back() -> None:
    model = model_with()
    adapted = (model.image, model.text)

    def apart(*given: Any) -> Any:
        yield from example_losses(*given)
        raise UserError("example 3: cannot be read")

    with pytest.raises(UserError, match="cannot be read"):
        start(model, apart=apart)
    assert (model.image, model.text) == adapted
    assert not any(p.requires_grad for tower in adapted for p in tower.base.parameters())


def test_depends_on_the_seed_alone() -> None:
    models = [model_with() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(number)
        start(model, seed=seed)
    first, same, other = map(side_weights, models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)  # six of eight examples: others


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions(precision: Any) -> None:
    full, model = model_with(), model_with()
    fabric = make_fabric("cpu", precision)
    fabric.setup_module(model)
    start(full)
    start(model, precision=precision)
    found, wanted = side_weights(model), side_weights(full)
    if precision == "bf16-mixed":  # gradients are taken without autocast
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    else:
        assert {value.dtype for value in found.values()} == {torch.bfloat16}
        weight = model.image.base.transformer_block(0).attn.in_proj_weight
        part = found["image.adapter.ladder.blocks.0.attn.in_proj_weight"]
        assert set(part.flatten().tolist()) <= set(weight.flatten().tolist())


def test_what_cannot_start_is_refused_with_a_mend() -> None:
    with pytest.raises(UserError, match=r"no side network.*--adapter.kind lst"):
        start(model_with(LinearOptions()))
    with pytest.raises(UserError, match=r"no gradient of 1 example.*more examples.*magnitude"):
        start(model_with(), count=1)  # a pair without negatives has no loss
    with pytest.raises(UserError, match=r"image: .*not finite; use --precision 32-true"):
        start(model_with(), apart=lambda *given: (loss * torch.nan for loss in example_losses(*given)))
    with pytest.raises(UserError, match=r"--adapter\.fisher_examples 0"):
        LstOptions(fisher_examples=0)
    base = tiny_base()
    base.image.transformer_block = lambda i: nn.Identity()  # a block that nobody can take apart
    base.image.narrow = lambda layers, reduction: tiny_base().image.narrow(layers, reduction)
    LstOptions(reduction=2).build(base.image)  # auto: random
    with pytest.raises(UserError, match=r"--adapter\.start random"):
        LstOptions(reduction=2, start="fisher").build(base.image)


def test_is_due_once(tmp_path: Path) -> None:
    magnitude = side_weights(model_with())

    def changes(**flags: Any) -> bool:
        model = model_with()
        start(model, folder=tmp_path, **flags)
        return any(not torch.equal(value, magnitude[name]) for name, value in side_weights(model).items())

    assert changes()
    assert not changes(adapter=LstOptions(reduction=2)) and not changes(adapter=LinearOptions())
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / STATE_FILE).touch()  # what came of the start lies there
    assert not changes()


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Drawn scenes: 10 + 3 images with two captions each."""
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    splits: dict[str, list[dict]] = {}
    for split, count in {"train": 10, "val": 3}.items():
        for i in range(count):
            scene = sample_scene(rng, "demo")
            draw(scene).save(root / f"{split}{i}.png")
            record = {"id": f"{split}/{i}", "image": f"{split}{i}.png", "texts": captions(scene, rng, 2)}
            splits.setdefault(split, []).append(record)
    write_dataset(root, name="drawn", task="retrieval", splits=splits, media_root=root, source="made for a test")
    return root


def train(dataset: Path, folder: Path, *words: object) -> dict[str, Tensor]:
    flags = ("--epochs", 2, "--batch_size", 4, "--device", "cpu", "--checkpoint_every", 1)
    call(TRAIN, "--data.root", dataset, "--output", folder, *flags, *FISHER, *words)
    return load_file(folder / "vlkit_adapter.safetensors")


@pytest.mark.slow
def test_a_resumed_run_does_not_start_again(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(dataset, tmp_path / "whole")
    step = fit.take_step

    def killed(training: Any, *given: Any) -> None:
        if training.state.step == 2:
            raise RuntimeError("power cut")
        step(training, *given)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "take_step", killed)
        with pytest.raises(RuntimeError, match="power cut"):
            train(dataset, tmp_path / "pieces")

    def again(*_: Any) -> None:
        raise AssertionError("the start was made twice")

    monkeypatch.setattr(vlkit.adapters.lst.method, "start_from_fisher", again)
    resumed = train(dataset, tmp_path / "pieces", "--resume")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    shutil.rmtree(tmp_path / "pieces")
    with pytest.raises(AssertionError, match="twice"):  # a run that has no checkpoint makes it
        train(dataset, tmp_path / "pieces", "--resume")


@pytest.mark.slow
def test_trains_from_the_cache(dataset: Path, tmp_path: Path) -> None:
    """The start reads the images themselves, so it is the same with ``--cache``."""
    words = ("--epochs", 1, "--lr", 0)
    plain = train(dataset, tmp_path / "plain", *words)
    cached = train(dataset, tmp_path / "cached", "--cache", tmp_path / "taps", *words)
    assert all(torch.equal(cached[name], plain[name]) for name in plain)
    magnitude = train(dataset, tmp_path / "magnitude", *words, "--adapter.start", "magnitude")
    changed = {name for name in plain if not torch.equal(plain[name], magnitude[name])}
    assert changed and all(".blocks." in name for name in changed)
