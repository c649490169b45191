"""The demo world's clips: what moves in them, what is said of them, and their official files."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from vlkit.data.manifest import Dataset
from vlkit.data.sources import msrvtt
from vlkit.data.sources.prepare import prepare
from vlkit.drawn import make
from vlkit.drawn.captions_video import LONGEST, sentences
from vlkit.drawn.clip_acts import PAIRS, SOLO
from vlkit.drawn.clip_samples import sample_clip
from vlkit.drawn.clips import FADES, Clip, clip_from_json, draw_frame, things_at
from vlkit.drawn.draw import mask_boxes, render
from vlkit.drawn.graph import Scene, Thing
from vlkit.drawn.kinds import KINDS
from vlkit.drawn.videos import draw_videos, sample_clips
from vlkit.drawn.words_video import gerund, third_person
from vlkit.drawn.world import COUNTS, generator
from vlkit.files import sha256_of

ACTIONS = (*SOLO, *PAIRS)
OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}
SAYS = {
    "right": r"\b(rightwards|from left to right|towards the right)\b",
    "left": r"\b(leftwards|from right to left|towards the left)\b",
    "up": r"\b(upwards|towards the top|from bottom to top|rising|rises)\b",
    "down": r"\b(downwards|towards the bottom|from top to bottom|sinking|sinks)\b",
}


def clips_of(count: int, seed: int = 5) -> list[Clip]:
    return [sample_clip(generator(seed, "train", index, 40)) for index in range(count)]


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return clips_of(700)


def alone(clips: list[Clip], action: str) -> Iterator[Clip]:
    """Clips in which nothing happens but ``action``."""
    found = [clip for clip in clips if [event.action for event in clip.events] == [action]]
    assert len(found) >= 3, f"only {len(found)} clips of {action}"
    yield from found


def mover(clip: Clip, time: float) -> Thing | None:
    """The acting thing of the first event as it is at a time."""
    return things_at(clip, time)[0].get(clip.events[0].thing)


def drawn(clip: Clip, time: float) -> tuple[np.ndarray, list[int]]:
    """Which thing is seen where at a time (1 = the first of the list), and the numbers of the things."""
    things = things_at(clip, time)[0]
    order = sorted(things)
    scene = dataclasses.replace(clip.scene, things=tuple(things[i] for i in order), shadow=False)
    return render(scene, 96)[1], order


def pixels(clip: Clip, number: int, time: float) -> int:
    """How much of a thing is seen."""
    ids, order = drawn(clip, time)
    return int((ids == order.index(number) + 1).sum())


def seen(clip: Clip, time: float) -> dict[int, tuple[float, float, float, float]]:
    """Boxes in pixels of what the image shows at a time, by number of the thing."""
    ids, order = drawn(clip, time)
    boxes = mask_boxes(ids, len(order))
    return {number: box for number, box in zip(order, boxes, strict=True) if box is not None}


def area(box: tuple[float, float, float, float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# --- Clips ---


def test_every_action_and_way_of_combining_them_occurs(clips: list[Clip]) -> None:
    events = Counter(event.action for clip in clips for event in clip.events)
    assert set(events) == set(ACTIONS)
    assert min(events.values()) >= 4
    kinds = Counter((len(clip.events), clip.together, len({e.thing for e in clip.events})) for clip in clips)
    assert set(kinds) == {(1, False, 1), (2, False, 1), (2, False, 2), (2, True, 2)}
    assert {clip.fps for clip in clips} == {8, 10, 12}
    assert min(clip.seconds for clip in clips) == 2 and max(clip.seconds for clip in clips) == 4


def test_no_clip_is_in_two_splits_or_twice_in_one() -> None:
    sampled = sample_clips(1, {"train": 500, "test": 150})
    keys = [clip.key() for split in sampled.values() for clip in split]
    assert len(keys) == 650 == len(set(keys))
    assert sample_clips(1, {"train": 5, "test": 150})["test"] == sampled["test"]


def test_key_tells_actions_colours_and_order_but_not_places(clips: list[Clip]) -> None:
    clip = next(clip for clip in clips if len(clip.events) == 2 and not clip.together)
    shifted = tuple(dataclasses.replace(thing, x=thing.x + 0.01, seed=1) for thing in clip.scene.things)
    assert dataclasses.replace(clip, scene=dataclasses.replace(clip.scene, things=shifted)).key() == clip.key()
    assert dataclasses.replace(clip, events=clip.events[::-1]).key() != clip.key()
    number = clip.events[0].thing
    things = list(clip.scene.things)
    things[number] = dataclasses.replace(things[number], colour="red" if things[number].colour != "red" else "blue")
    assert dataclasses.replace(clip, scene=dataclasses.replace(clip.scene, things=tuple(things))).key() != clip.key()


def test_clip_survives_json(clips: list[Clip]) -> None:
    for clip in clips[:50]:
        assert clip_from_json(json.loads(json.dumps(clip.to_json()))) == clip


def test_things_are_of_different_kinds_at_any_time(clips: list[Clip]) -> None:
    for clip in clips:
        for time in (0, clip.seconds):
            kinds = [thing.kind for thing in things_at(clip, time)[0].values()]
            assert len(kinds) == len(set(kinds))


def test_events_in_turn_do_not_overlap_and_each_lies_within_the_clip(clips: list[Clip]) -> None:
    for clip in clips:
        for event in clip.events:
            assert 0 < event.start < event.stop < clip.seconds
        if len(clip.events) == 2 and not clip.together:
            first, second = clip.events
            assert first.stop < second.start
            early, _, _ = things_at(clip, first.stop)
            if second.thing != first.thing and second.action != "appear":
                assert early[second.thing] == clip.scene.things[second.thing]  # it has not begun to move


def test_what_stands_still_is_never_hidden(clips: list[Clip]) -> None:
    checked = 0
    for clip in clips[:150]:
        busy = {event.thing for event in clip.events} | {event.other for event in clip.events}
        for number in set(range(len(clip.scene.things))) - busy:
            boxes = [seen(clip, time)[number] for time in np.linspace(0, clip.seconds, 5)]
            assert min(map(area, boxes)) > 0.6 * max(map(area, boxes))
            checked += 1
    assert checked > 50


# --- Motion, as drawn ---


@pytest.mark.parametrize("action", ["move", "cross", "enter", "leave"])
def test_motion_goes_where_the_event_says(clips: list[Clip], action: str) -> None:
    for clip in alone(clips, action):
        event = clip.events[0]
        boxes = [seen(clip, time).get(event.thing) for time in np.linspace(0, clip.seconds, 9)]
        assert (boxes[0] is None) == (action in ("cross", "enter"))
        assert (boxes[-1] is None) == (action in ("cross", "leave"))
        places = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes if b is not None]
        dx, dy = np.subtract(places[-1], places[0])
        along = {"right": dx, "left": -dx, "down": dy, "up": -dy}[event.way]
        assert along > (15 if action == "move" else 0)
        assert max(abs(dx), abs(dy)) == pytest.approx(along)


def test_growing_and_shrinking_double_and_halve(clips: list[Clip]) -> None:
    for action, low, high in (("grow", 2.5, 7.0), ("shrink", 0.14, 0.4)):
        for clip in alone(clips, action):
            number = clip.events[0].thing
            before, after = (area(seen(clip, time)[number]) for time in (0, clip.seconds))
            assert low < after / before < high


def test_fades_change_the_image_from_one_state_to_the_other(clips: list[Clip]) -> None:
    for action in sorted(FADES):
        for clip in alone(clips, action):
            event = clip.events[0]
            assert (event.thing in seen(clip, 0)) == (action != "appear")
            assert (event.thing in seen(clip, clip.seconds)) == (action != "disappear")
            first, last = (np.asarray(draw_frame(clip, k)).astype(float) for k in (0, clip.frames - 1))
            assert np.abs(first - last).max() > 30
            middle = np.abs(np.asarray(draw_frame(clip, round((event.start + event.stop) / 2 * clip.fps))) - first)
            assert middle.max() > 0
    recoloured = next(alone(clips, "recolour"))
    end = things_at(recoloured, recoloured.seconds)[0][recoloured.events[0].thing]
    assert end.colour == recoloured.events[0].way != recoloured.scene.things[recoloured.events[0].thing].colour


def test_turns_have_the_stated_sense(clips: list[Clip]) -> None:
    for clip in alone(clips, "spin"):
        event = clip.events[0]
        quarter = mover(clip, event.start + (event.stop - event.start) / 4)
        assert quarter is not None and quarter.angle == pytest.approx(90 if event.way == "clockwise" else -90)
    for clip in alone(clips, "orbit"):
        event = clip.events[0]
        centre = clip.scene.things[event.other]
        times = event.start + (event.stop - event.start) * np.array([0, 0.25])
        a, b = ((m.x - centre.x, m.y - centre.y) for m in (mover(clip, float(t)) for t in times))
        # With y down, a clockwise quarter takes (x, y) to (-y, x).
        sign = 1 if event.way == "clockwise" else -1
        assert b == pytest.approx((-a[1] * sign, a[0] * sign), abs=1e-6)


def test_hopping_goes_up_and_shaking_sideways(clips: list[Clip]) -> None:
    for action, axis in (("hop", 1), ("shake", 0)):
        for clip in alone(clips, action):
            event = clip.events[0]
            states = [mover(clip, t) for t in np.linspace(event.start, event.stop, 40)]
            moved = [np.ptp([getattr(state, name) for state in states]) for name in ("x", "y")]
            assert moved[axis] > 0.09 and moved[1 - axis] == 0
            assert mover(clip, clip.seconds) == clip.scene.things[event.thing]


def test_two_things_meet_as_the_event_says(clips: list[Clip]) -> None:
    for clip in alone(clips, "behind"):
        event = clip.events[0]
        sizes = [pixels(clip, event.thing, t) for t in np.linspace(0, clip.seconds, 11)]
        assert min(sizes) < 0.6 * sizes[0] and sizes[-1] == pytest.approx(sizes[0], rel=0.15)
    for clip in alone(clips, "front"):
        event = clip.events[0]
        sizes = [pixels(clip, event.thing, t) for t in np.linspace(0, clip.seconds, 11)]
        assert min(sizes) > 0.85 * max(sizes)
        others = [pixels(clip, event.other, t) for t in np.linspace(0, clip.seconds, 11)]
        assert min(others) < 0.95 * max(others)
    for action, sign in (("approach", 1), ("retreat", -1)):
        for clip in alone(clips, action):
            event = clip.events[0]
            far, near = (things_at(clip, t)[0] for t in (0, clip.seconds)[::sign])
            pairs = [(state[event.thing], state[event.other]) for state in (far, near)]
            gaps = [np.hypot(one.x - two.x, one.y - two.y) for one, two in pairs]
            assert gaps[0] > gaps[1] + 0.2
    for clip in alone(clips, "swap"):
        event = clip.events[0]
        first, last = things_at(clip, 0)[0], things_at(clip, clip.seconds)[0]
        assert (first[event.thing].x, first[event.thing].y) == (last[event.other].x, last[event.other].y)
        assert (first[event.other].x, first[event.other].y) == (last[event.thing].x, last[event.thing].y)
    for clip in alone(clips, "land"):
        event = clip.events[0]
        assert event.thing not in seen(clip, 0)
        support = clip.scene.things[event.other]
        surface = support.y + KINDS[support.kind].top * support.scale / 2
        assert seen(clip, clip.seconds)[event.thing][3] == pytest.approx(96 * surface, abs=5)
    for clip in alone(clips, "chase"):
        event = clip.events[0]
        now = things_at(clip, (event.start + event.stop) / 2)[0]
        ahead = now[event.other].x - now[event.thing].x
        assert (ahead > 0.1) if event.way == "right" else (ahead < -0.1)


# --- Sentences ---


def test_twenty_different_sentences_in_the_manner_of_msrvtt(clips: list[Clip]) -> None:
    for index, clip in enumerate(clips[:250]):
        texts = sentences(clip, generator(5, "train", index, 41))
        assert len(set(texts)) == 20
        assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", text) and len(text.split()) <= LONGEST for text in texts)
        assert texts == sentences(clip, generator(5, "train", index, 41))


def test_sentences_never_tell_the_opposite_way(clips: list[Clip]) -> None:
    told = 0
    for index, clip in enumerate(clips):
        ways = {event.way for event in clip.events}
        if len(clip.scene.things) > 1 + (clip.events[0].other is not None) or len(ways & set(OPPOSITE)) != 1:
            continue  # the place of a still thing uses the same words
        way = (ways & set(OPPOSITE)).pop()
        text = " | ".join(sentences(clip, generator(5, "train", index, 41)))
        assert not re.search(SAYS[OPPOSITE[way]], text), text
        told += re.search(SAYS[way], text) is not None
    assert told > 20


def test_order_of_two_events_is_told_truly(clips: list[Clip]) -> None:
    told = Counter()
    for index, clip in enumerate(clips):
        if len(clip.events) != 2 or clip.together or [e.action for e in clip.events][1] != "disappear":
            continue
        if clip.events[0].action in ("disappear", "leave", "appear"):
            continue
        gone = r"(disappear|vanish|fad(e|ing))"
        for text in sentences(clip, generator(5, "train", index, 41)):
            assert not re.search(rf"{gone}.* before ", text), text
            told.update(pattern for pattern in (rf"before .*{gone}", rf"{gone}.* after") if re.search(pattern, text))
    assert len(told) == 2 and min(told.values()) >= 3


def test_no_size_is_told_of_what_changes_its_size(clips: list[Clip]) -> None:
    for action in ("grow", "shrink"):
        for clip in list(alone(clips, action))[:8]:
            text = " ".join(sentences(dataclasses.replace(clip, scene=_only(clip)), generator(5, "train", 0, 41)))
            assert not re.search(r"\b(small|little|tiny|large|big|huge)\b", text)


def _only(clip: Clip) -> Scene:
    return dataclasses.replace(clip.scene, things=clip.scene.things[:1])


def test_forms_of_verbs() -> None:
    assert [third_person(v) for v in ("go up", "pass by", "vanish", "fly off", "move")] == [
        "goes up", "passes by", "vanishes", "flies off", "moves",
    ]  # fmt: skip
    assert [gerund(v) for v in ("spin round", "move", "go up", "get bigger")] == [
        "spinning round", "moving", "going up", "getting bigger",
    ]  # fmt: skip


# --- Files ---


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part ``msrvtt`` of a world with 9 training and 4 test clips."""
    folder = tmp_path_factory.mktemp("world") / "w"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COUNTS, "small", {"train": 60, "val": 1, "test": 20})
        make.make_world(folder, seed=3, size="small", parts=("msrvtt",))
    return folder / "msrvtt"


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_official_files_agree_with_each_other(official: Path) -> None:
    data = json.loads((official / "MSRVTT_data.json").read_text())
    videos = {video["video_id"]: video for video in data["videos"]}
    assert list(videos) == [f"video{i}" for i in range(13)] == [f"video{v['id']}" for v in data["videos"]]
    captions: dict[str, list[str]] = {}
    for sentence in data["sentences"]:
        captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
    assert {len(texts) for texts in captions.values()} == {20} and set(captions) == set(videos)
    assert sorted(sentence["sen_id"] for sentence in data["sentences"]) == list(range(260))
    assert [s["video_id"] for s in data["sentences"][:20]] != ["video0"] * 20  # not grouped
    nine, seven = (read_csv(official / f"MSRVTT_train.{name}.csv") for name in ("9k", "7k"))
    test = read_csv(official / "MSRVTT_JSFUSION_test.csv")
    assert [row["video_id"] for row in nine] == [f"video{i}" for i in range(9)]
    assert [row["video_id"] for row in seven] == [f"video{i}" for i in range(7)]
    assert [row["video_id"] for row in test] == [f"video{i}" for i in range(9, 13)]
    assert [row["vid_key"] for row in test] == [f"msr{i}" for i in range(9, 13)]
    assert all(row["sentence"] in captions[row["video_id"]] for row in test)
    splits = [video["split"] for video in videos.values()]
    assert splits == ["train"] * 6 + ["validate"] + ["test"] * 6


def test_files_show_the_drawn_clips(official: Path) -> None:
    data = json.loads((official / "MSRVTT_data.json").read_text())
    lengths = {video["video_id"]: video["end time"] - video["start time"] for video in data["videos"]}
    lines = "".join((official / f"clips_{name}.jsonl").read_text() for name in ("train", "test")).splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 13 == len(list((official / "videos").iterdir()))
    for record in records:
        clip = clip_from_json(record["clip"])
        with av.open(str(official / record["file_name"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (96, 96, clip.fps)
            frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
        assert len(frames) == clip.frames
        assert lengths[record["video_id"]] == pytest.approx(len(frames) / clip.fps, abs=0.01)
        for number in (0, clip.frames // 2, clip.frames - 1):
            drawn = np.asarray(draw_frame(clip, number)).astype(int)
            assert np.abs(frames[number] - drawn).mean() < 6


@pytest.mark.parametrize(("split", "counts"), [("9k", (9, 0, 4)), ("7k", (7, 0, 4)), ("full", (6, 1, 6))])
def test_converter_reads_the_demo_files(official: Path, tmp_path: Path, split: str, counts: tuple[int, ...]) -> None:
    source = msrvtt.read(official / "MSRVTT_data.json", official, split)
    dataset = prepare(source, tmp_path / "out", official / "videos").dataset
    assert source.notes == []
    sizes = [len(Dataset.open(tmp_path / "out", "video_retrieval").records(s)) for s in dataset.splits]
    assert sizes == [count for count in counts if count]
    assert {len(record["texts"]) for record in dataset.records("test")} == ({20} if split == "full" else {1})


@pytest.mark.slow
def test_same_seed_writes_the_same_with_any_number_of_processes(tmp_path: Path) -> None:
    counts = {"train": 9, "test": 3}
    worlds = [draw_videos(3, counts, tmp_path / str(n), workers=n) for n in (0, 2)]
    assert worlds[0] == worlds[1]
    files = [{p.name: sha256_of(p) for p in (tmp_path / str(n) / "videos").iterdir()} for n in (0, 2)]
    assert files[0] == files[1] and len(files[0]) == 12
    other = draw_videos(4, counts, tmp_path / "other")
    assert not {video.clip.key() for video in other} & {video.clip.key() for video in worlds[0]}


def test_odd_side_is_raised_to_an_even_one(tmp_path: Path) -> None:
    draw_videos(1, {"train": 1, "test": 1}, tmp_path, side=65)
    with av.open(str(tmp_path / "videos" / "video0.mp4")) as container:
        assert container.streams.video[0].width == 66


def test_without_x264_clips_are_mpeg4_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vlkit.data.video.write.av.codecs_available", {"mpeg4"})
    video = draw_videos(1, {"train": 1, "test": 1}, tmp_path)[0]
    assert "no libx264" in caplog.text
    with av.open(str(tmp_path / video.file_name)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(frame - np.asarray(draw_frame(video.clip, 0)).astype(int)).mean() < 6
