"""Losses against their plain definitions; chunks and processes against the one large batch."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.errors import UserError
from vlkit.tasks.contrastive import (
    Pairs,
    example_losses,
    gather_pairs,
    info_nce,
    mean_over_blocks,
    require_negatives,
    siglip,
    symmetric_cross_entropy,
    triplet,
)
from vlkit.tasks.gradient_cache import encode_twice

GROUPS = {"no groups": [0, 1, 2, 3, 4, 5], "groups": [0, 1, 0, 2, 2, 2], "one group": [3, 3, 3, 3, 3, 3]}
every_grouping = pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)


def embeddings(count: int = 6, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda: F.normalize(torch.randn(count, width, dtype=torch.float64, generator=generator), dim=-1)  # noqa: E731
    return make().requires_grad_(), make().requires_grad_()


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def check_same(mine: Tensor, theirs: Tensor, leaves: tuple[Tensor, ...]) -> None:
    """Equal values and equal gradients."""
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(mine, leaves, allow_unused=True),
        torch.autograd.grad(theirs, leaves, allow_unused=True),
        strict=True,
    ):
        zero = torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(
            *torch.broadcast_tensors(zero if one is None else one, zero if other is None else other),
            rtol=1e-12,
            atol=1e-12,
        )


@every_grouping
def test_info_nce_equals_its_definition(groups: list[int]) -> None:
    images, texts = embeddings()
    scale = scalar(7.0)
    terms = []
    for queries, keys in ((images, texts), (texts, images)):
        for i in range(6):
            others = [j for j in range(6) if j == i or groups[j] != groups[i]]
            logits = torch.stack([scale * (queries[i] * keys[j]).sum() for j in others])
            terms.append(logits.logsumexp(0) - scale * (queries[i] * keys[i]).sum())
    loss = info_nce(gather_pairs(images, texts, torch.tensor(groups)), scale)

    check_same(loss, sum(terms) / len(terms), (images, texts, scale))


def test_info_nce_without_groups_is_symmetric_cross_entropy() -> None:
    images, texts = embeddings()
    loss = info_nce(gather_pairs(images, texts, torch.arange(6)), torch.tensor(3.0))
    check_same(loss, symmetric_cross_entropy(3.0 * images @ texts.T), (images, texts))


@every_grouping
def test_siglip_equals_its_definition(groups: list[int]) -> None:
    images, texts = embeddings()
    scale, bias = scalar(5.0), scalar(-2.0)
    total = 0.0
    for i in range(6):
        for j in range(6):
            sign = 1.0 if groups[i] == groups[j] else -1.0
            total = total - torch.log(torch.sigmoid(sign * (scale * (images[i] * texts[j]).sum() + bias)))
    loss = siglip(gather_pairs(images, texts, torch.tensor(groups)), scale, bias)

    check_same(loss, total / 6, (images, texts, scale, bias))


@every_grouping
@pytest.mark.parametrize("hardest", [True, False])
def test_triplet_equals_its_definition(groups: list[int], hardest: bool) -> None:
    images, texts = embeddings()
    total = 0.0 * images.sum()
    for queries, keys in ((images, texts), (texts, images)):
        for i in range(6):
            partner = (queries[i] * keys[i]).sum()
            costs = [
                torch.relu(0.2 + (queries[i] * keys[j]).sum() - partner) for j in range(6) if groups[j] != groups[i]
            ]
            if costs:
                total = total + (max(costs, key=Tensor.item) if hardest else sum(costs))
    loss = triplet(gather_pairs(images, texts, torch.tensor(groups)), 0.2, hardest)

    check_same(loss, total, (images, texts))


def shares(images: Tensor, texts: Tensor, groups: Tensor, size: int) -> list[Pairs]:
    """The pairs as each of several processes sees them."""
    starts = range(0, len(images), size)
    cut = [slice(start, start + size) for start in starts]
    return [
        Pairs(images[own], texts[own], groups[own], images, texts, groups, start)
        for own, start in zip(cut, starts, strict=True)
    ]


@pytest.mark.parametrize("loss", [info_nce, siglip])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0]])
def test_blocks_of_processes_give_the_loss_and_the_gradient_of_the_whole_batch(
    loss: Callable[..., Tensor], groups: list[int]
) -> None:
    def gradients(size: int) -> list[Tensor]:
        images, texts = (
            F.normalize(torch.randn(6, 5, dtype=torch.float64, generator=seeded(n)), dim=1) for n in (0, 1)
        )
        scalars = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (7.0, -3.0)]
        leaves = [images.requires_grad_(), texts.requires_grad_(), *scalars[: 1 if loss is info_nce else 2]]
        parts = [loss(part, *leaves[2:]) for part in shares(images, texts, torch.tensor(groups), size)]
        total = sum(parts) / len(parts)
        return [total.detach(), *torch.autograd.grad(total, leaves)]

    for expected, two, three in zip(gradients(6), gradients(3), gradients(2), strict=True):
        torch.testing.assert_close(two, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(three, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [info_nce, siglip])
def test_no_block_is_kept_for_backward(loss: Callable[..., Tensor]) -> None:
    size, world, width = 32, 8, 4
    images, texts = (torch.randn(size * world, width, generator=seeded(n)).requires_grad_() for n in (0, 1))
    part = shares(images, texts, torch.arange(size * world), size)[3]
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    scalars = (torch.tensor(5.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(part, *scalars[: 1 if loss is info_nce else 2])
    # Blocks have size * size numbers, all columns together size * world * size.
    assert max(saved, default=0) < size * size


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_single_pair() -> None:
    images, texts = embeddings(1)
    pairs = gather_pairs(images, texts, torch.tensor([0]))

    assert info_nce(pairs, torch.tensor(10.0)).item() == 0.0
    assert triplet(pairs).item() == 0.0
    assert siglip(pairs, torch.tensor(1.0), torch.tensor(0.0)).item() == pytest.approx(
        math.log1p(math.exp(-float((images * texts).sum().detach())))
    )


class Towers(nn.Module):
    """Two towers with dropout and a learned logit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(7, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 5))
        self.text = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 5))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def embed(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image(images), dim=-1), F.normalize(self.text(texts), dim=-1)

    def forward(self, images: Tensor, texts: Tensor, sizes: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
        """With ``sizes`` in parts of so many pairs, each encoded twice."""
        if not sizes:
            return *self.embed(images, texts), self.logit_scale.exp()
        parts = split((images, texts), sizes)
        embedded = [encode_twice(self.embed, *part, anchor=self.logit_scale) for part in parts]
        return *(torch.cat(side) for side in zip(*embedded, strict=True)), self.logit_scale.exp()


def towers() -> Towers:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Towers().double()


def inputs(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(count, width, dtype=torch.float64, generator=generator) for width in (7, 4))


def split(batch: tuple[Tensor, Tensor], sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(sizes) for part in batch), strict=True))


def contrastive(groups: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda images, texts, scale: info_nce(gather_pairs(images, texts, groups), scale)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [5, 5, 2], [1] * 12])
def test_chunks_give_the_gradient_of_the_whole_batch(sizes: list[int]) -> None:
    batch, groups = inputs(), torch.arange(12) // 2
    whole, chunked = towers(), towers()
    # Dropout draws chunk by chunk: the whole batch is therefore encoded in the same chunks, but in one graph.
    torch.manual_seed(5)
    images, texts, scales = zip(*(whole(*chunk) for chunk in split(batch, sizes)), strict=True)
    loss = contrastive(groups)(torch.cat(images), torch.cat(texts), scales[0])
    loss.backward()
    after = torch.rand(1)

    torch.manual_seed(5)
    found = contrastive(groups)(*chunked(*batch, sizes))
    found.backward()

    torch.testing.assert_close(found, loss, rtol=1e-12, atol=1e-12)
    expected = gradients(whole)
    assert all(g.count_nonzero() for g in expected.values())
    for name, gradient in gradients(chunked).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)
    assert torch.equal(torch.rand(1), after)  # random numbers go on as after one pass


def test_chunks_add_to_gradients_that_are_there() -> None:
    loss_of, once, twice = contrastive(torch.arange(12)), towers().eval(), towers().eval()
    loss_of(*once(*inputs(), [6, 6])).backward()
    for _ in range(2):
        loss_of(*twice(*inputs(), [6, 6])).backward()
    for name, gradient in gradients(twice).items():
        torch.testing.assert_close(gradient, 2 * gradients(once)[name], rtol=1e-12, atol=1e-12)


def test_losses_of_examples_add_up_to_the_batch() -> None:
    batch, groups = inputs(), torch.arange(12) // 2
    whole, apart = towers().eval(), towers().eval()
    contrastive(groups)(*whole(*batch)).backward()
    # Options of the forward say how a large batch is run, which is of no interest to one example.
    shares = list(
        example_losses(lambda forward, given, epoch: contrastive(groups)(*forward(*given, sizes=[6, 6])), apart, batch)
    )
    assert len(shares) == 12
    first = torch.autograd.grad(shares[0], apart.image[0].weight, retain_graph=True)[0]
    sum(shares).backward()
    for name, p in whole.named_parameters():
        if name != "logit_scale":
            torch.testing.assert_close(apart.get_parameter(name).grad, p.grad, rtol=1e-10, atol=1e-12, msg=name)
    assert not torch.allclose(12 * first, apart.image[0].weight.grad, rtol=0.1)


def test_chunks_leave_a_frozen_scale_alone() -> None:
    model = towers().eval()
    model.logit_scale.requires_grad_(False)
    contrastive(torch.arange(12))(*model(*inputs(), [4, 8])).backward()

    assert model.logit_scale.grad is None
    assert all(p.grad.count_nonzero() for name, p in model.named_parameters() if name != "logit_scale")


@pytest.mark.parametrize(("batch_size", "groups", "says"), [(1, 9, "--batch_size 1.*no negatives"), (8, 1, "1 image")])
def test_a_loss_without_negatives_is_refused(batch_size: int, groups: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        require_negatives(batch_size, groups)
    require_negatives(2, 2)


# --- two processes ---

WORLD, SHARE = 2, 4
SHARED_GROUPS = [0, 1, 2, 2, 3, 0, 4, 4]  # one group lies across the two processes
LOSSES: dict[str, Callable[[Pairs, Tensor, Tensor], Tensor]] = {
    "info_nce": lambda pairs, scale, bias: info_nce(pairs, scale),
    "siglip": siglip,
    "triplet": lambda pairs, scale, bias: triplet(pairs, hardest=False) * scale,
}


def rows_of(rank: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tuple(part[rank * SHARE : (rank + 1) * SHARE] for part in batch)


def work(rank: int, port: int, folder: str) -> None:
    """One process: its rows of the batch, whole and in chunks; writes mean loss and mean gradients."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "NODE_RANK": "0"}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test"}
    from vlkit.engine.distributed import average_gradients, average_numbers, make_fabric

    torch.set_num_threads(1)
    fabric = make_fabric("cpu")
    batch, groups = rows_of(rank, inputs(WORLD * SHARE)), torch.tensor(SHARED_GROUPS)[rank * SHARE :][:SHARE]
    results = {}
    for name, loss_of in LOSSES.items():
        for sizes in ([SHARE], [3, 1]):
            model = towers().eval()
            images, texts, scale = model(*batch, sizes if len(sizes) > 1 else ())
            pairs = gather_pairs(images, texts, groups, fabric)
            loss = mean_over_blocks(loss_of, pairs, scale, -scale, 0, fabric)
            fabric.backward(loss)
            average_gradients(fabric, list(model.parameters()), [])
            results[f"{name} {len(sizes)}"] = {
                "loss": average_numbers(fabric, {"loss": loss})["loss"],
                **gradients(model),
            }
    torch.save(results, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_one_process(loss_of: Callable[[Pairs, Tensor, Tensor], Tensor], size: int) -> dict[str, Tensor]:
    """Loss and gradients; ``size``: pairs encoded and compared at once."""
    model = towers().eval()
    images, texts, scale = model(*inputs(WORLD * SHARE), [size] * WORLD if size else ())
    pairs = gather_pairs(images, texts, torch.tensor(SHARED_GROUPS))
    loss = mean_over_blocks(loss_of, pairs, scale, -scale, size, None)
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (free_port(), str(tmp_path)), nprocs=WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]

    assert set(found[0]) == {f"{name} {chunks}" for name in LOSSES for chunks in (1, 2)}
    for key in found[0]:
        expected, blocks = (in_one_process(LOSSES[key.split()[0]], size) for size in (0, SHARE))
        if key.endswith(" 1"):  # the two encode as many pairs at once as the one with blocks
            got = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in found[0][key].items()}
            assert [name for name in blocks if not torch.equal(blocks[name], got[name])] == [], key
        for result in found:
            assert result[key].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(
                    torch.as_tensor(result[key][name], dtype=torch.float64),
                    torch.as_tensor(value, dtype=torch.float64),
                    rtol=1e-9,
                    atol=1e-11,
                    msg=f"{key} {name}",
                )
