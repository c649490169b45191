"""The web demo over its endpoints: answers, what it refuses, many at once, opening it up, stopping it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from helpers.demo_server import DemoServer, demo_server
from helpers.scripts import command, load_script
from vlkit.cli.config import parse
from vlkit.drawn import album as album_module
from vlkit.drawn import album_drawing
from vlkit.drawn.album import demo_album, drawing_ahead
from vlkit.errors import UserError
from vlkit.files import cache_folder
from vlkit.serving import load_models, shipped_adapters
from vlkit.serving.limits import UPLOAD_BYTES

pytestmark = pytest.mark.slow

QUERY, ITS_IMAGE = "a yellow house and a black snowman", "image71.jpg"


@pytest.fixture(scope="module")
def server():
    with demo_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: DemoServer) -> Client:
    found = Client(server.url, verbose=False)
    wait_for_index(found)
    return found


def wait_for_index(client: Client) -> None:
    """Until all models have indexed the images and the clips."""
    deadline = time.monotonic() + 120
    while True:
        try:
            for model in client.predict(api_name="/about")["searchable"]:
                client.predict("x", 1, model, api_name="/search")
            if "video_retrieval" in {folder.name for folder in shipped_adapters()}:
                client.predict("x", 1, api_name="/search_video")
            return
        except AppError as error:
            assert "still being indexed" in str(error) and time.monotonic() < deadline
            time.sleep(0.3)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_search_finds_the_image_and_says_with_what(client: Client):
    answer = client.predict(QUERY, 3, api_name="/search")
    assert answer["model"] == "SHERL" and answer["results"][0]["picture"] == ITS_IMAGE
    scores = [hit["score"] for hit in answer["results"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    before = client.predict(QUERY, 3, "zero-shot tiny", api_name="/search")
    assert before["model"] == "zero-shot tiny"
    assert abs(before["results"][0]["score"] - scores[0]) > 0.01  # the adapter changes what the base says


def test_a_search_adds_and_subtracts_texts(client: Client):
    def found(query: str) -> dict[str, float]:
        return {hit["picture"]: hit["score"] for hit in client.predict(query, 24, api_name="/search")["results"]}

    alone, same, other = found(QUERY), found(f"2*{QUERY}"), found(f"{QUERY} - 0.5*a green bus")
    assert alone[ITS_IMAGE] == pytest.approx(same[ITS_IMAGE], abs=1e-4)
    assert abs(alone[ITS_IMAGE] - other[ITS_IMAGE]) > 0.01
    assert "a sign without a term" in refused(client, "a bus - - a cat", 3, api_name="/search")


def test_a_image_finds_itself_and_its_caption(client: Client):
    entry = demo_album().about_images[70]
    image = handle_file(str(demo_album().images / entry.name))
    hit = client.predict(image, 1, api_name="/search_by_picture")["results"][0]
    # Uploaded as it is, so the very same pixels.
    assert hit["picture"] == entry.name == ITS_IMAGE and hit["score"] == pytest.approx(1, abs=1e-4)
    texts = f"a purple umbrella over a cat\n{QUERY}\na green bus"
    ranked = client.predict(image, texts, api_name="/choose_captions")
    assert ranked[0]["text"] == QUERY and len(ranked) == 3


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_upload_is_seen_upright_by_every_endpoint(client: Client, tmp_path: Path, orientation: int):
    """A phone stores the pixels as its sensor read them, and says in EXIF how to turn them."""
    entry, phone = demo_album().about_images[70], tmp_path / "phone.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    Image.open(demo_album().images / entry.name).transpose(stored).save(phone, exif=exif)
    hit = client.predict(handle_file(str(phone)), 1, api_name="/search_by_picture")["results"][0]
    assert hit["picture"] == ITS_IMAGE and hit["score"] == pytest.approx(1, abs=1e-4)
    tasks = {folder.name for folder in shipped_adapters()}
    for task, words in (("grounding", ("/ground", entry.phrases[0][0], 1)), ("vqa", ("/answer", "what is this?", 3))):
        if task in tasks:
            name, *rest = words
            files = (phone, demo_album().images / entry.name)
            turned, upright = (client.predict(handle_file(str(file)), *rest, api_name=name) for file in files)
            assert json.dumps(turned) == json.dumps(upright)


def test_a_very_thin_upload_is_searched(client: Client, tmp_path: Path):
    Image.new("RGB", (30_000, 1), "red").save(tmp_path / "thin.png")
    assert (
        len(client.predict(handle_file(str(tmp_path / "thin.png")), 2, api_name="/search_by_picture")["results"]) == 2
    )


def test_classes_are_those_typed_in_or_the_kinds_of_the_demo_world(client: Client):
    image = handle_file(str(demo_album().images / demo_album().about_images[0].name))
    found = client.predict(image, "house, car\na red boat,", 5, api_name="/classify")
    assert {entry["class"] for entry in found} == {"house", "car", "a red boat"}
    assert sum(entry["probability"] for entry in found) == pytest.approx(1)
    assert len(client.predict(image, "", 7, api_name="/classify")) == 7
    assert "house given twice" in refused(client, image, "house, house", 5, api_name="/classify")
    assert "at most 200" in refused(client, image, ",".join(f"a{i}" for i in range(201)), 5, api_name="/classify")


def test_the_answers_that_tabs_open_with_are_those_that_the_models_give(client: Client):
    """They may have been stored by an earlier start."""
    first = {c["props"].get("elem_id"): c["props"].get("value") for c in client.config["components"]}
    images, tasks = demo_album().images, {folder.name for folder in shipped_adapters()}

    def bars(name: str) -> list[str]:
        return re.findall(r'class="name">([^<]+)<', first[name])

    if "vqa" in tasks:
        entry = next(entry for entry in demo_album().about_images if entry.questions)
        answers = client.predict(handle_file(str(images / entry.name)), first["ask-question"], api_name="/answer")
        assert bars("ask-result") == [each["answer"] for each in answers]
    image = handle_file(str(images / demo_album().about_images[0].name))
    classes = client.predict(image, first["classify-names"], 5, api_name="/classify")
    assert bars("classify-result") == [each["class"] for each in classes]
    if "grounding" in tasks:
        drawn = re.findall(r'>(\d+) to (\d+)</td><td class="number">(\d+) to (\d+)<', first["ground-boxes"])
        its = next(
            e for e in demo_album().about_images if e.phrases and first["ground-phrase"].startswith(e.phrases[0][0])
        )
        boxes = client.predict(handle_file(str(images / its.name)), first["ground-phrase"], api_name="/ground")
        assert len(boxes) == 3
        for (x1, x2, y1, y2), box in zip(drawn, boxes, strict=True):
            assert [int(x1), int(y1), int(x2), int(y2)] == pytest.approx(box["box"], abs=0.51)


def test_about_names_base_adapters_device_and_precision(client: Client):
    about = client.predict(api_name="/about")
    assert "tiny" in about["bases"] and about["adapters"]["retrieval"] == ["SHERL"]
    assert about["device"] == "cpu" and about["precision"] == "32-true"


def test_only_documented_endpoints_are_offered(client: Client):
    offered = set(client.view_api(print_info=False, return_format="dict")["named_endpoints"])
    tasks = {folder.name for folder in shipped_adapters()}
    of_tasks = {"vqa": {"/answer", "/compare_answers"}, "grounding": {"/ground", "/compare_boxes"}}
    of_tasks |= {"video_retrieval": {"/search_video"}, "moment_retrieval": {"/moments"}}
    expected = {"/search", "/search_by_picture", "/choose_captions", "/classify", "/compare", "/memory", "/about"}
    assert offered == expected.union(*(names for task, names in of_tasks.items() if task in tasks))


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(client: Client, *words: object, api_name: str) -> str:
    """The sentence a request is refused with; the demo must answer the next one."""
    with pytest.raises(AppError) as caught:
        client.predict(*words, api_name=api_name)
    assert client.predict(QUERY, 1, api_name="/search")["results"][0]["picture"] == ITS_IMAGE
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_bad_texts_and_numbers_are_refused_with_a_sentence(client: Client):
    assert "9,999,999 characters" in refused(client, "why " * 2_500_000, 3, api_name="/search")
    assert "empty" in refused(client, "  ", 3, api_name="/search")
    assert "no model 'other'" in refused(client, "a cat", 3, "other", api_name="/search")
    assert "24" in refused(client, "a cat", 10**9, api_name="/search")
    assert "list of choices" in refused(client, "../../etc/passwd", 8, 8, api_name="/memory")


def test_bad_images_are_refused_with_a_sentence(client: Client, tmp_path: Path):
    Image.effect_noise((300, 300), 90).convert("RGB").save(tmp_path / "fine.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "fine.jpg").read_bytes()[:4000])
    (tmp_path / "text.jpg").write_text("I am no image.")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    (tmp_path / "script.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    reasons = {"cut.jpg": "truncated", "text.jpg": "not an image", "huge.png": "10000 x 10000 pixels"}
    for name, reason in {**reasons, "script.svg": "SVG is not supported; convert"}.items():
        message = refused(client, handle_file(str(tmp_path / name)), 3, api_name="/search_by_picture")
        assert message.startswith(f"{name}: cannot be used as an image") and reason in message
    assert "no image yet" in refused(client, None, 3, api_name="/search_by_picture")


def test_uploads_have_a_size_limit(server: DemoServer, client: Client):
    files = {"files": ("big.jpg", bytes(UPLOAD_BYTES + 1), "image/jpeg")}
    answer = httpx.post(f"{server.url}/gradio_api/upload", files=files, timeout=60)
    assert answer.status_code == 413
    assert client.predict(QUERY, 1, api_name="/search")["results"]


@pytest.mark.parametrize(
    "path",
    [
        *("../../etc/passwd", "/etc/passwd", "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd"),
        *("file:///etc/passwd", "pyproject.toml", "{album}/album.json", "{album}/pictures/image01.jpg"),
    ],
)
def test_the_file_route_shows_nothing_but_what_the_demo_made(server: DemoServer, path: str):
    path = path.format(album=demo_album().images.parent)
    host = server.url.removeprefix("http://")
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file="):
        # httpx would tidy the dots away; this client sends the path as it stands.
        connection = http.client.HTTPConnection(host, timeout=10)
        connection.request("GET", route + path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
        connection.close()
        assert answer.status in (403, 404) and "detail" in json.loads(body), (route, answer.status, body[:200])


def test_a_path_in_place_of_an_upload_is_refused(server: DemoServer, client: Client):
    for path in ("/etc/passwd", "../../etc/passwd", str(demo_album().images / ITS_IMAGE)):
        image = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = f"{server.url}/gradio_api/call/search_by_picture"
        event = httpx.post(call, json={"data": [image, 3, None]}, timeout=30).json()["event_id"]
        answer = httpx.get(f"{call}/{event}", timeout=30).text
        assert "event: error" in answer and "root:" not in answer and "results" not in answer
    assert client.predict(QUERY, 1, api_name="/search")["results"]


# --- many at once ----------------------------------------------------------------------------------------------------


def test_fifty_searches_from_another_process(server: DemoServer, client: Client, tmp_path: Path):
    words = ("--url", server.url, "--requests", 50, "--pid", server.process.pid, "--json", tmp_path / "load.json")
    subprocess.run(command("benchmarks/demo_load.py", *words), check=True, timeout=240, capture_output=True)
    figures = json.loads((tmp_path / "load.json").read_text())
    assert (figures["requests"], figures["failed"], figures["differing"]) == (50, 0, 0), figures["failures"]
    assert 0 < figures["together_p95_s"] < 60 and figures["server_rss_mib"] < 4000
    print(figures)


def test_a_slow_request_does_not_hold_up_a_search(server: DemoServer, client: Client):
    shutil.rmtree(cache_folder() / "memory", ignore_errors=True)  # what was predicted before takes no time
    slow = Client(server.url, verbose=False).submit("ViT-B-32-quickgelu", 16, 8, api_name="/memory")
    times = []
    while not slow.done() and len(times) < 5:
        start = time.monotonic()
        assert client.predict(QUERY, 1, api_name="/search")["results"][0]["picture"] == ITS_IMAGE
        times.append(time.monotonic() - start)
    assert times and not slow.done()
    needs = slow.result(timeout=240)
    assert [need["method"] for need in needs] == ["SHERL", "LoRA", "full"]
    assert needs[0]["kept"] < 0.2 * needs[2]["kept"] and all(need["fits"] for need in needs)


# --- the album -------------------------------------------------------------------------------------------------------


def test_the_album_is_drawn_ahead_by_another_process(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path))
    with drawing_ahead():
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("demo/*-album*/album.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        monkeypatch.setattr(album_drawing, "draw", lambda folder: pytest.fail("drawn twice"))
        album = demo_album()
    assert all((album.images / entry.name).is_file() for entry in album.about_images)


def test_the_album_is_drawn_here_if_the_other_process_fails(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("VLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(album_module.sys, "executable", shutil.which("false"))
    with drawing_ahead():
        album = demo_album()
    assert len(list(album.images.iterdir())) == len(album.about_images)


# --- opening up and stopping -----------------------------------------------------------------------------------------


def test_own_folder_two_adapters_and_a_password(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for entry in demo_album().about_images[68:74]:
        (images / entry.name).write_bytes((demo_album().images / entry.name).read_bytes())
    (images / "secret.txt").write_text("not for you")
    shipped = next(folder for folder in shipped_adapters() if folder.name == "retrieval")
    mine = tmp_path / "mine <b>_[x]_*y*"
    mine.mkdir()
    for file in shipped.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    (images / os.fsdecode(b"<b> [x] caf\xe9.jpg")).write_bytes((images / ITS_IMAGE).read_bytes())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ("--model", shipped, mine, "--images", images, "--auth", "ann:pass:word")
    with demo_server(*words, TMPDIR=str(temporary)) as server:
        assert httpx.post(f"{server.url}/gradio_api/call/search", json={"data": ["x", 1, None]}).status_code == 401
        client = Client(server.url, auth=("ann", "pass:word"), verbose=False)
        wait_for_index(client)
        for model in ("SHERL", f"SHERL ({mine.name})"):
            hits = client.predict(QUERY, 9, model, api_name="/search")["results"]
            assert len(hits) == 7 and {hit["picture"] for hit in hits[:2]} == {ITS_IMAGE, "<b> [x] caf\\xe9.jpg"}
        session = httpx.Client(base_url=server.url)
        session.post("/login", data={"username": "ann", "password": "pass:word"})
        about = next(c for c in session.get("/config").json()["components"] if c["props"].get("elem_id") == "about")
        assert "SHERL (mine &lt;b&gt;_[x]_*y*)" in about["props"]["value"] and about["type"] == "html"
        for name in ("secret.txt", ITS_IMAGE):
            assert session.get(f"/gradio_api/file={images / name}").status_code == 403
        assert list(temporary.glob("vlkit-demo-*"))
        assert server.stop(signal.SIGINT) == 0
    assert not list(temporary.glob("vlkit-demo-*"))


def test_it_starts_quickly_and_stops_in_good_order(server: DemoServer, client: Client):
    print(f"{server.seconds:.1f} s until it listened")
    assert threading.active_count() < 200
    assert server.stop(signal.SIGTERM) == 143
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--port", 0), "--port 0"),
        (("--auth", "nobody"), "--auth"),
        (("--images", "/no/such/folder"), "no such folder"),
        (("--videos", "/no/such/folder"), "no such folder"),
    ],
)
def test_wrong_flags_are_named(words: tuple[object, ...], message: str):
    with pytest.raises(UserError, match=message):
        parse(load_script("demos/app.py").Config, [str(word) for word in words])


def test_every_shipped_adapter_loads():
    models = load_models(device="cpu")
    assert {task for task, found in models.by_task.items() if found} == {folder.name for folder in shipped_adapters()}
