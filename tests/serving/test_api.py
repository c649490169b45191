"""The HTTP API on a loopback port: embeddings, search, keys, limits, metrics, and a stop without a failed request."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from helpers import api_server
from helpers.scripts import refuse
from helpers.shards import image_bytes
from vlkit.index import IndexWriter, Item, VectorIndex
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot

pytest.importorskip("prometheus_client")

from vlkit.serving.api import Limits, Service, listen, make_app
from vlkit.serving.api.inputs import SearchRequest
from vlkit.serving.api.server import DrainingServer

KEY = {"Authorization": "Bearer k-1"}


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def pipeline() -> RetrievalPipeline:
    return load_zero_shot("tiny", "cpu")


@pytest.fixture(scope="module")
def server(pipeline, tmp_path_factory) -> Iterator[httpx.Client]:
    """A client of a server with an index of eight images and two keys."""
    import uvicorn

    folder = tmp_path_factory.mktemp("index")
    images = [Image.open(io.BytesIO(image_bytes(number))) for number in range(8)]
    with IndexWriter.open(folder, pipeline.dim, pipeline.identity) as writer:
        items = [Item(f"{number}.png", metadata={"n": number}) for number in range(8)]
        writer.add(items, pipeline.embed_images(images))
    limits = Limits(body_bytes=200_000, inputs=4, waiting=6)
    app = make_app(Service(pipeline, VectorIndex.open(folder)), limits, ("k-0", "k-1"))
    opened = listen("127.0.0.1", 0)
    running = DrainingServer(uvicorn.Config(app, log_level="warning"), app, 0)
    thread = threading.Thread(target=running.run, args=([opened],), daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{opened.getsockname()[1]}", headers=KEY, timeout=60) as client:
        yield client
    running.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def embed(client: httpx.Client, inputs: object, **more: object) -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": inputs, **more})


def test_texts_and_images_in_their_order(server, pipeline):
    picture = image_bytes(3)
    inputs = [
        "a red square",
        {"image": as_text(picture)},
        {"text": "a dog"},
        f"data:image/png;base64,{as_text(picture)}",
    ]
    answer = embed(server, inputs)
    body = answer.json()
    assert answer.status_code == 200 and body["model"] == pipeline.name and body["object"] == "list"
    assert [row["index"] for row in body["data"]] == [0, 1, 2, 3]
    found = np.array([row["embedding"] for row in body["data"]], np.float32)
    texts = pipeline.embed_texts(["a red square", "a dog"])
    image = pipeline.embed_images([Image.open(io.BytesIO(picture))])[0]
    np.testing.assert_allclose(found, [texts[0], image, texts[1], image], atol=1e-5)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 4
    packed = embed(server, "a red square", encoding_format="base64", model=pipeline.name).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), texts[0], atol=1e-5)


def test_the_client_of_openai_reads_it(server, pipeline):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key="k-1", base_url=f"{server.base_url}/v1")
    answer = client.embeddings.create(model=pipeline.name, input=["a dog", "a cat"])
    found = np.array([row.embedding for row in answer.data], np.float32)
    np.testing.assert_allclose(found, pipeline.embed_texts(["a dog", "a cat"]), atol=1e-5)


def test_search_by_image_and_text(server, pipeline):
    hits = server.post("/search", json={"image": as_text(image_bytes(5)), "k": 3}).json()["results"]
    assert len(hits) == 3 and hits[0]["id"] == "5.png" and hits[0]["metadata"] == {"n": 5}
    assert hits[0]["score"] == pytest.approx(1, abs=1e-4)
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert len(server.post("/search", json={"text": "a dog"}).json()["results"]) == 8


def test_names_that_are_not_utf8_are_answered(pipeline, tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    with IndexWriter.open(tmp_path, pipeline.dim, pipeline.identity) as writer:
        writer.add([Item(name, metadata={"video": name})], pipeline.embed_texts(["a dog"]))
    (hit,) = Service(pipeline, VectorIndex.open(tmp_path)).search(SearchRequest(text="a dog"))
    json.dumps(hit, ensure_ascii=False).encode()  # as a response is written
    assert hit["id"] == hit["metadata"]["video"] and hit["id"].startswith("caf")


@pytest.mark.parametrize(
    ("inputs", "status", "says"),
    [
        ([], 400, "has 0 entries; give 1 to 4"),
        (["a"] * 5, 400, "has 5 entries; give 1 to 4"),
        (["a", " "], 400, "input 1: The text is empty"),
        (["a", {"image": "&&"}], 400, "input 1: is not base64"),
        ([{"image": as_text(b"no image")}], 400, r"input 0: cannot be used as an image \(not an image\)"),
        ([{"image": as_text(image_bytes(1)[:60])}], 400, "truncated"),
        ([{"image": "http://127.0.0.1/x.png"}], 400, "URLs are not fetched"),
        ([{"text": "a", "image": "b"}], 400, "give a text"),
        ([{"picture": "b"}], 400, "picture: Extra inputs are not permitted"),
        (7, 400, "input"),
        (["x" * 300_000], 413, "larger than 200000 bytes"),
    ],
)
def test_wrong_inputs_are_explained_and_hurt_nobody(inputs, status, says, server):
    answer = embed(server, inputs)
    assert answer.status_code == status and re.search(says, answer.json()["error"]["message"])
    assert embed(server, "a dog").status_code == 200


def test_broken_bodies(server):
    for body in (b"{", b"[" * 100_000, b'{"input": "\xff"}'):
        answer = server.post("/v1/embeddings", content=body)
        assert answer.status_code == 400 and "message" in answer.json()["error"]
    chunks = (b"x" * 1000 for _ in range(300))  # no Content-Length
    assert server.post("/v1/embeddings", content=chunks).status_code == 413
    assert server.get("/nothing").status_code == 404
    assert embed(server, "a", model="other").status_code == 404


def test_a_bad_image_does_not_fail_the_requests_beside_it(server):
    """Requests that arrive together form one batch."""
    inputs = [{"image": as_text(image_bytes(0) if number % 2 else b"bad")} for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda item: embed(server, [item]).status_code, inputs))
    assert answers == [400, 200] * 3


def test_keys(server):
    for headers in ({"Authorization": "Bearer k-2"}, {"Authorization": "k-1"}, {"Authorization": "Bearer"}):
        assert server.get("/v1/models", headers=headers).status_code == 401
    assert server.get("/v1/models").json()["data"][0]["object"] == "model"
    without = httpx.get(f"{server.base_url}/healthz")
    assert without.status_code == 200 and without.json()["status"] == "ok"


def test_metrics_count_requests_and_inputs(server):
    def value(name: str) -> float:
        page = httpx.get(f"{server.base_url}/metrics").text
        found = re.search(rf"^{re.escape(name)} ([\d.e+]+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = (
        'vlkit_requests_total{path="/v1/embeddings",status="200"}',
        'vlkit_requests_total{path="other",status="404"}',
        'vlkit_inputs_total{kind="text"}',
        'vlkit_inputs_total{kind="image"}',
        'vlkit_request_seconds_count{path="/v1/embeddings"}',
    )
    before = [value(name) for name in names]
    embed(server, ["a", {"image": as_text(image_bytes(0))}, "b"])
    server.get("/x/y")
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [1, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "either --model DIR"),
        (("--base", "tiny", "--port", "70000"), "--port 70000: must be from 0 to 65535"),
        (("--base", "tiny", "--api_keys", "empty.txt"), "--api_keys empty.txt: holds no key"),
        (("--base", "tiny", "--port", "0", "--index", "none"), "--index none: no index here"),
    ],
)
def test_wrong_flags_are_named(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("# none yet\n\n")
    assert says in refuse("tasks/retrieval/serve.py", *words)


@pytest.mark.slow
def test_sigterm_fails_no_request(tmp_path):
    """Clients that ask all the time get good answers until one tells them to go to another replica."""
    server = multiprocessing.get_context("spawn").Process(
        target=api_server.launch,
        args=(["--base", "tiny", "--port", "0", "--drain_seconds", "1"], str(tmp_path / "said")),
    )
    server.start()
    said = tmp_path / "said"
    while not (said.exists() and (found := re.search(r"http://\S+:\d+", said.read_text()))):
        assert server.is_alive(), said.read_text()
        time.sleep(0.05)
    answers: list[int] = []
    broken: list[str] = []

    def ask() -> None:
        with httpx.Client(base_url=found[0], timeout=60) as client:
            while True:
                try:
                    answer = embed(client, "a red square")
                except httpx.HTTPError as error:
                    broken.append(repr(error))
                    return
                answers.append(answer.status_code)
                if answer.headers.get("connection") == "close":
                    return

    while httpx.get(f"{found[0]}/healthz").status_code != 200:
        time.sleep(0.05)
    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    while len(answers) < 20:
        time.sleep(0.01)
    before = len(answers)
    os.kill(server.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert httpx.get(f"{found[0]}/healthz").json()["status"] == "draining"
    for client in clients:
        client.join(60)
    server.join(60)
    assert server.exitcode == 143 and not broken and set(answers) == {200} and len(answers) > before
    assert "Traceback" not in said.read_text()
