"""Moment retrieval: targets, losses, windows, the refinement block and the metrics of highlight sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlkit.adapters.r2.block import TOKENS_AT_ONCE, R2Block, TokenDropout, endpoints_of
from vlkit.adapters.r2.temporal import DropPath
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.errors import UserError
from vlkit.memory.live import LiveBytes
from vlkit.metrics.moment import list_precision, tvsum_metrics, youtube_metrics
from vlkit.tasks.moment_retrieval.data import MomentCollate, MomentExample, Timeline
from vlkit.tasks.moment_retrieval.evaluate import Found, MomentFinder, parts_of
from vlkit.tasks.moment_retrieval.head import MomentHeads, MomentOptions, points_of
from vlkit.tasks.moment_retrieval.losses import (
    MomentLoss,
    boundary_loss,
    info_nce,
    moment_losses,
    saliency_loss,
    same_moment,
)
from vlkit.tasks.moment_retrieval.match import QueryMatch
from vlkit.tasks.moment_retrieval.model import METHODS, MomentModel, build_model
from vlkit.tasks.moment_retrieval.summary import summary_of
from vlkit.tasks.moment_retrieval.targets import point_targets, positive_clips, repaired, saliency_of
from vlkit.tasks.moment_retrieval.windows import post_process


def block(**options: object) -> R2Block:
    torch.manual_seed(0)
    made = R2Block(12, 10, 8, 3, dropout=0.0, drop_path=0.0, **options)
    for parameter in made.parameters():  # scale and gate start at 0, where they hide their inputs
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.double()


def inputs(clips: int = 7, tokens: int = 5, batch: int = 2) -> tuple:
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(3, batch, clips, 4, 12, generator=generator, dtype=torch.float64)
    query = torch.randn(3, batch, tokens, 10, generator=generator, dtype=torch.float64)
    return (
        list(video),
        list(query),
        torch.ones(batch, clips, dtype=torch.bool),
        torch.ones(batch, tokens, dtype=torch.bool),
    )


# --- similarities as a start ---


def test_similarities_start_the_scores_of_clips_and_levels_whatever_the_padding() -> None:
    torch.manual_seed(0)
    match = QueryMatch(4)
    query = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    angles = torch.tensor([[80.0, 70.0, 10.0, 20.0, 75.0], [85.0, 10.0, 20.0, 0.0, 0.0]]).deg2rad()
    clips = torch.stack([angles.cos(), angles.sin()], dim=-1)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    states, standard = match(clips, query, mask)
    torch.testing.assert_close(standard.sum(1), torch.zeros(2))
    assert standard[0].argmax() == 2 and standard[1].argmax() == 0
    assert not states[1, 3:].any() and not standard[1, 3:].any()
    alone, same = match(clips[1:, :3], query[1:], mask[1:, :3])
    torch.testing.assert_close(same[0], standard[1, :3])
    torch.testing.assert_close(alone[0], states[1, :3])
    points = match.at_points(standard, [5, 2, 1], (1, 2, 4)) / match.gain
    torch.testing.assert_close(points[:, :5], standard)
    torch.testing.assert_close(points[:, 5:7], standard[:, :4].unflatten(1, (2, 2)).mean(2))
    torch.testing.assert_close(points[:, 7], standard[:, :4].mean(1))


def test_clips_that_look_alike_say_nothing() -> None:
    clips = torch.ones(1, 4, 3) + 1e-5 * torch.randn(1, 4, 3)
    _, standard = QueryMatch(4)(clips, torch.ones(1, 3), torch.ones(1, 4, dtype=torch.bool))
    assert standard.abs().max() < 0.01


# --- the block ---


def test_the_published_number_of_weights() -> None:
    refinement = R2Block(768, 512, 256, 4)
    heads = MomentHeads(MomentOptions(256))
    assert sum(p.numel() for module in (refinement, heads) for p in module.parameters()) == 2_836_242


def test_lean_equals_plain_and_saves_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", 16)  # several parts
    results = {}
    for lean in (True, False):
        module, given = block(lean=lean), inputs()
        with LiveBytes() as live:
            loss = module(*given).frames.pow(2).sum()
            saved = live.kept_for(loss, module)
        loss.backward()
        results[lean] = loss.detach(), {name: p.grad for name, p in module.named_parameters()}, saved
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-12, atol=0.0)
    for name, gradient in results[False][1].items():
        torch.testing.assert_close(results[True][1][name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    assert results[True][2] < results[False][2]


def test_masked_pads_do_not_change_a_query_but_published_ones_do() -> None:
    video, query, video_mask, query_mask = inputs()
    longer = [torch.cat([layer, torch.zeros(2, 3, 10, dtype=torch.float64)], dim=1) for layer in query]
    longer_mask = torch.cat([query_mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    for pads, same in (("masked", True), ("published", False)):
        module = block(pads=pads)
        short, long = module(video, query, video_mask, query_mask), module(video, longer, video_mask, longer_mask)
        assert torch.allclose(short.frames, long.frames, atol=1e-12) == same


def test_own_positions_do_not_depend_on_batch_mates() -> None:
    video, query, video_mask, query_mask = inputs()
    video_mask[1, 4:] = False
    video = [layer * video_mask[:, :, None, None] for layer in video]
    for positions, same in (("own", True), ("padded", False)):
        module = block(positions=positions)
        together = module(video, query, video_mask, query_mask).frames[1, :4]
        alone = module([v[1:, :4] for v in video], [q[1:] for q in query], video_mask[1:, :4], query_mask[1:])
        assert torch.allclose(together, alone.frames[0], atol=1e-12) == same


@pytest.mark.parametrize("clips", [1, 48, 49, 50])
def test_endpoints_have_one_row_per_clip(clips: int) -> None:
    found = endpoints_of(torch.ones(2, clips, dtype=torch.bool))
    assert found.shape == (2, clips, 2)
    assert torch.allclose(found[0, -1], torch.tensor([(clips - 1) / clips, 1.0]))


def test_token_dropout_keeps_the_mean_and_drops_the_share() -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 401)
    dropped = TokenDropout(0.5)(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(TokenDropout(0.5).eval()(x), x)


def test_drop_path_drops_whole_samples() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.5)(torch.ones(400, 3, 2)).flatten(1)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and (dropped == dropped[:, :1]).all()
    assert 0.4 < (dropped[:, 0] == 0).float().mean() < 0.6


# --- points, targets, losses ---


def test_ranges_of_levels_include_both_ends() -> None:
    points = points_of([4, 2, 1], (1, 2, 4))
    assert points[:, 0].tolist() == [0, 1, 2, 3, 0, 2, 0]
    assert points[[0, 4, 6], 1:].tolist() == [[0, 2, 1], [2, 4, 2], [4, math.inf, 4]]
    assert points_of([3], (1,))[:, 1:].tolist() == [[0, math.inf, 1]] * 3
    skipped = points_of([4, 2], (1, 2, 4))  # the video is too short for the third level
    assert skipped[-1].tolist() == [2, 2, 4, 2]


def test_the_shortest_moment_wins_and_padding_is_ignored() -> None:
    points = points_of([8], (1,))
    windows = torch.tensor([[[0.0, 8.0], [3.0, 5.0], [math.inf, math.inf]]])
    target = point_targets(points, windows)
    assert target.offsets[0, 4].tolist() == [1.0, 1.0] and bool(target.classes[0, 4])
    assert not point_targets(points, torch.full((1, 2, 2), math.inf)).classes.any()
    assert point_targets(points, torch.full((1, 2, 2), math.inf)).offsets.isfinite().all()


def test_windows_are_repaired() -> None:
    found, changed = repaired([[4, 8], [9, 5], [-3, 2], [50, 99], [3.1, 3.2]], clips=10, fps=0.5)
    assert changed == 4
    assert found[:3] == [(4, 8), (5.0, 9.0), (0.0, 2.0)]
    assert found[3] == (18.0, 20.0)  # past the end: the last clip
    assert found[4] == pytest.approx((2.15, 4.15))
    assert repaired([[0, 1]], clips=1, fps=0.5)[0] == [(0.0, 2.0)]


def test_saliency_of_each_kind_of_annotation() -> None:
    listed = {"windows": [[2, 6]], "clip_ids": [1, 2, 9], "saliency": [[4, 4, 4], [1, 1, 1], [4, 4, 4]]}
    assert saliency_of(listed, 4, 0.5)[0].tolist() == [0, 1, 0.25, 0]
    # Annotators scored clips of two seconds; the model's may be shorter or longer.
    assert saliency_of(listed, 8, 1.0)[0].tolist() == [0, 0, 1, 1, 0.25, 0.25, 0, 0]
    assert saliency_of({"clip_ids": [10], "saliency": [[4, 4, 4]]}, 30, 1.0)[0].nonzero().flatten().tolist() == [20, 21]
    assert saliency_of({"clip_ids": [3], "saliency": [[4, 4, 4]]}, 3, 0.25)[0].tolist() == [0, 1, 0]
    assert saliency_of({"windows": [[2.5, 5]]}, 4, 0.5)[0].tolist() == [0, 0, 1, 0]
    scores, kind = saliency_of({"scores": [[5] * 20, [1] * 20, [3] * 20]}, 3, 0.5)
    assert (scores.tolist(), kind) == ([1, 0, 0.5], "tvsum")
    assert positive_clips(scores, kind) == [0]  # above the lower median
    scores, kind = saliency_of({"match": [1, 0, -1, 1]}, 3, 0.5)
    assert (scores.tolist(), kind, positive_clips(scores, kind)) == ([1, 0.5, 0], "youtube", [0])


def test_saliency_loss_has_a_gradient_where_columns_are_empty() -> None:
    scores = torch.randn(2, 5, requires_grad=True)
    masked = scores.masked_fill(torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]) == 1, -math.inf)
    saliency = torch.tensor([[0.2, 0.9, 0.9, 0.1, 0.5], [0.9, 0.5, 0.0, 0.0, 0.0]])
    loss = saliency_loss(masked, saliency, torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite() and scores.grad is not None and scores.grad.isfinite().all()


def test_queries_about_one_moment_are_no_negatives_of_each_other() -> None:
    inf = math.inf
    windows = torch.tensor([[[1, 4], [9, 9.5]], [[3, 6], [inf, inf]], [[4, 5], [9, 10]], [[1, 4], [inf, inf]]])
    same = same_moment(windows, torch.tensor([0, 0, 0, 1]))
    assert same.int().tolist() == [[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    apart = same_moment(windows[:, :1], torch.tensor([0, 0, 0, 1]))  # touching is not overlapping
    assert apart.int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]

    clips, queries = torch.eye(3)[None, :2], torch.tensor([[[1.0, 0, 0], [0.8, 0.6, 0]]])
    by_hand = math.log(1 + math.exp((0.8 - 1) / 0.07))  # row and column of the first pair; those of the second: 0 - 0.6
    other = math.log(1 + math.exp((0 - 0.6) / 0.07))
    rows = (by_hand + other) / 2
    columns = (math.log(1 + math.exp(-1 / 0.07)) + math.log(1 + math.exp((0.8 - 0.6) / 0.07))) / 2
    assert info_nce(clips, queries).item() == pytest.approx((rows + columns) / 2, rel=1e-4)
    assert info_nce(clips, queries, torch.tensor([[False, True], [True, False]])).item() == 0

    scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    saliency, positive = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0]]), torch.tensor([0, 1])
    without = saliency_loss(scores, saliency, positive, columns=False)
    all_same = torch.tensor([[False, True], [True, False]])
    assert saliency_loss(scores, saliency, positive, same=all_same).item() == pytest.approx(without.item())
    assert saliency_loss(scores, saliency, positive).item() > without.item() + 0.1


def heads_of(batch: int = 3, clips: int = 9, moments: bool = True) -> tuple:
    torch.manual_seed(0)
    module = R2Block(12, 10, 8, 3, dropout=0.0, drop_path=0.0, endpoints=moments)
    heads = MomentHeads(MomentOptions(8) if moments else MomentOptions(8, (1,)), moments)
    video, query, video_mask, query_mask = inputs(clips, batch=batch)
    predicted = heads(
        module([v.float() for v in video], [q.float() for q in query], video_mask, query_mask), video_mask, query_mask
    )
    return torch.nn.ModuleList([module, heads]), predicted


@pytest.mark.parametrize("positive", [[-1, -1, -1], [2, -1, -1], [0, 1, 2]])
def test_videos_without_a_moment_give_finite_losses_and_gradients(positive: list[int]) -> None:
    module, predicted = heads_of()
    windows = torch.full((3, 1, 2), math.inf)
    if positive[0] >= 0:
        windows[0, 0] = torch.tensor([1.0, 4.0])
    losses = moment_losses(predicted, windows, torch.rand(3, 9), torch.tensor(positive), MomentLoss())
    losses["loss"].backward()
    assert set(losses) == {"loss", "classes", "boundary", "saliency", "video", "layer"}
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_highlight_sets_have_one_level_and_no_boundaries() -> None:
    _, predicted = heads_of(moments=False)
    losses = moment_losses(predicted, None, torch.rand(3, 9), torch.tensor([0, 1, 2]), MomentLoss())
    assert predicted.offsets is None and len(predicted.points) == 9
    assert set(losses) == {"loss", "classes", "saliency", "video", "layer"} and losses["loss"].isfinite()


def test_boundary_loss_of_no_positive_point_is_zero() -> None:
    offsets = torch.rand(2, 4, 2, requires_grad=True)
    loss = boundary_loss(offsets, torch.full((2, 4, 2), math.inf), torch.zeros(2, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and offsets.grad is not None and offsets.grad.isfinite().all()


# --- windows ---


def test_windows_at_the_end_are_clamped_and_not_rounded() -> None:
    found = post_process([[3.4, 9.1, 0.9], [5.4, 12.0, 0.8], [-3.0, 4.9, 0.7]], 10.0, unit=2.0, nms="none")
    assert found.tolist() == [[4.0, 10.0, 0.9], [5.4, 10.0, 0.8], [0.0, 4.0, 0.7]]


def test_suppression_and_empty_windows() -> None:
    same = [[2.0, 2.0, 0.9], [2.0, 2.0, 0.8], [0.0, 10.0, 0.7], [0.0, 8.0, 0.6]]
    assert np.isfinite(post_process(same, 10.0, nms="linear")).all()
    hard = post_process(same, 10.0, nms="hard", threshold=0.7)
    assert hard[:, 2].tolist() == [0.9, 0.8, 0.7, 0.0] and len(hard) == 4
    linear = post_process(same[2:], 10.0, nms="linear")
    assert linear[1, 2] == pytest.approx(0.6 * 0.2)
    assert post_process([], 10.0).shape == (0, 3)


def found_of(saliency: list[float], duration: float = 8.0, fps: float = 0.5) -> Found:
    return Found(np.zeros((0, 3)), np.array(saliency), Timeline(len(saliency), fps, duration))


def test_a_summary_fits_its_budget() -> None:
    found = found_of([0.9, 0.1, 0.8, 0.7])
    assert summary_of(found, 4) == [(0.0, 2.0), (4.0, 6.0)]
    assert summary_of(found, 7.9) == [(0.0, 2.0), (4.0, 8.0)]
    assert summary_of(found, 100) == [(0.0, 8.0)]
    assert summary_of(found_of([0.1, 0.9], duration=3.0), 2) == [(2.0, 3.0)]
    for seconds in (0, -1, math.nan, 1.5):
        with pytest.raises(UserError, match="summary of"):
            summary_of(found, seconds)


def test_long_videos_are_searched_in_parts() -> None:
    assert parts_of(10, 10) == [(0, 10)]
    assert parts_of(25, 10) == [(0, 10), (5, 15), (10, 20), (15, 25)]
    assert parts_of(7200, 1024)[-1] == (6176, 7200)
    covered = {clip for start, stop in parts_of(1023, 100) for clip in range(start, stop)}
    assert covered == set(range(1023))


# --- models ---


def tiny_batch(base, clips: tuple[int, ...] = (5, 3)) -> tuple[Frames, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (3, *base.preprocess.size)
    videos = [torch.randint(0, 256, (n, *size), dtype=torch.uint8, generator=generator) for n in clips]
    return Frames.of(videos), base.text.trim(base.tokenize(["a red ball", "two cats under a blue tree"]))


@pytest.mark.parametrize("kind", ["r2", "sherl", "unipt", "vqt", "linear"])
def test_every_method_trains_its_own_weights(kind: str) -> None:
    base = load_base("tiny")
    model = build_model(base, METHODS[kind](), MomentOptions(16)).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    predicted = model(*tiny_batch(base))
    windows = torch.tensor([[[1.0, 4.0]], [[0.0, 2.0]]])
    losses = moment_losses(predicted, windows, torch.rand(2, 5), torch.tensor([2, 1]), MomentLoss())
    losses["loss"].backward()
    assert losses["loss"].isfinite() and predicted.logits.shape == (2, 5 + 2 + 1)
    missing = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not {name for name in missing if not name.startswith("heads.pyramid.levels.3")}  # level 8 is too long here
    assert frozen and all(p.grad is None for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("kind", ["r2", "sherl"])
def test_queries_about_one_video_share_its_frames(kind: str) -> None:
    base = load_base("tiny")
    torch.manual_seed(0)
    model = build_model(base, METHODS[kind](), MomentOptions(16, match=True)).eval()
    frames, ids = tiny_batch(base)
    videos, three = torch.tensor([1, 0, 1]), ids[[0, 1, 1]]
    shared = model(frames, three, videos)
    repeated = model(Frames.of([frames.pixels[5:], frames.pixels[:5], frames.pixels[5:]]), three)
    torch.testing.assert_close(shared.logits, repeated.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.frames, repeated.frames, rtol=1e-4, atol=1e-5)
    assert torch.equal(shared.mask, repeated.mask) and shared.mask.sum(1).tolist() == [3, 5, 3]


def test_a_batch_holds_each_video_once() -> None:
    def example(name: str, video: int) -> MomentExample:
        pixels = torch.full((video + 2, 3, 4, 4), video, dtype=torch.uint8)
        return MomentExample(pixels, name, torch.zeros(1, 2), torch.zeros(video + 2), 0, video)

    lengths = lambda texts: torch.tensor([len(text) for text in texts])  # noqa: E731
    batch = MomentCollate(lengths)([example("a", 7), example("bb", 3), example("ccc", 7)])
    assert batch.videos.tolist() == [0, 1, 0] and batch.ids.tolist() == [1, 2, 3]
    assert isinstance(batch.frames, Frames) and batch.frames.mask.sum(1).tolist() == [9, 5]
    assert batch.frames.pixels[:, 0, 0, 0].tolist() == [7] * 9 + [3] * 5 and batch.saliency.shape == (3, 9)


def test_parts_of_a_long_video_find_what_the_whole_finds() -> None:
    base = load_base("tiny")
    torch.manual_seed(0)
    model = build_model(base, METHODS["linear"](), MomentOptions(16))
    frames, _ = tiny_batch(base, (12,))

    class Plain:
        def __getattr__(self, name: str):
            return {"to_device": lambda x: x, "autocast": torch.no_grad}[name]

    post = {"unit": 0.0, "nms": "hard", "threshold": 0.7}
    read = lambda start, stop: Frames.of([frames.pixels[start:stop]])  # noqa: E731
    for most in (12, 5):
        finder = MomentFinder(model, text_side("clip", base), Plain(), post, most)  # type: ignore[arg-type]
        (found,) = finder.find(read, Timeline(12, 0.5, 24.0), ["a red ball"])
        assert len(found.saliency) == 12 and np.isfinite(found.saliency).all()
        assert (found.windows[:, :2] <= 24.0).all() and len(found.windows) > 12
        assert found.windows[:, 0].max() > 12.0  # windows of later parts are shifted
    assert isinstance(model, MomentModel) and model.training  # its mode is restored


# --- metrics ---


def test_list_precision_by_hand() -> None:
    assert list_precision(np.array([True, False, True])) == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 3) / 2)
    assert list_precision(np.array([False, False])) == 0.0
    assert youtube_metrics([[0.9, 0.1, 0.5]], [[1, 0, -1]]) == {"hl_map": 100.0}
    target = np.tile(np.array([[5], [1], [1], [1]]), (1, 20))
    assert tvsum_metrics([[0.9, 0.1, 0.2, 0.3]], [target]) == {"hl_map": 100.0}
    with pytest.raises(UserError, match="NaN"):
        youtube_metrics([[math.nan, 0.0]], [[1, 0]])
