"""Black boxes: in this process, and behind a real server on loopback that serves the embedded base."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlkit.errors import UserError
from vlkit.serving.black_box import BlackBoxError, BudgetSpent, HttpBlackBox, HttpOptions, LocalBlackBox
from vlkit.serving.score_server import ScoreServer
from vlkit.tasks.classification.pipeline import zero_shot_pipeline
from vlkit.tasks.classification.prompts import Prompts

CLASSES = ("cat", "dog", "red circle")


@contextlib.contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def answering(answer: Callable[[int, Any], tuple[int, bytes, dict[str, str]]]) -> Iterator[str]:
    """A service on loopback that answers request number n as a test wants."""
    count = iter(range(1000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, headers = answer(next(count), body)
            if status == 0:  # hangs up
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def right(body: Any) -> bytes:
    return json.dumps({"scores": [[1.0, 2.0, 3.0]] * len(body["images"])}).encode()


def box_for(url: str, waits: list[float] | None = None, **options: Any) -> HttpBlackBox:
    budget = options.pop("budget", None)
    given = HttpOptions(url, **{"retries": 3, "timeout": 5.0, **options})
    return HttpBlackBox(given, 3, budget, sleep=(waits if waits is not None else []).append)


PIXELS = torch.rand(5, 3, 96, 96, generator=torch.Generator().manual_seed(0))


# --- the embedded base behind both ---


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return zero_shot_pipeline("tiny", Prompts(CLASSES, ("a {}",)), "cpu")


def test_both_give_the_same_scores(pipeline: Any) -> None:
    labeller, preprocess = pipeline.labeller, pipeline.labeller.base.preprocess
    local = LocalBlackBox(labeller.model, preprocess.mean, preprocess.std, eight_bits=True)
    server = ScoreServer(lambda images: labeller.scores(images, lambda image: image), CLASSES, preprocess.size)
    with serving(server) as url:
        with urllib.request.urlopen(url) as answer:
            assert json.loads(answer.read()) == {"classes": list(CLASSES), "size": [96, 96]}
        remote = box_for(url, per_request=2)
        scores = remote.scores(PIXELS)
    assert scores.shape == (5, 3) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, local.scores(PIXELS), rtol=1e-4, atol=1e-3)
    assert remote.asked == local.asked == 5


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[", b"{}", b'{"images": []}', b'{"images": "x"}', b'{"images": ["!"]}', b'{"images": [3]}', b"\xff"),
        json.dumps({"images": [base64.b64encode(b"GIF89a no image").decode()]}).encode(),
    ],
)
def test_the_server_refuses_nonsense_with_a_reason(body: bytes) -> None:
    server = ScoreServer(lambda images: torch.zeros(len(images), 3), CLASSES, (96, 96))
    with serving(server) as url, pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(url, body, method="POST"))
    assert raised.value.code == 400 and json.loads(raised.value.read())["error"]


# --- in this process ---


def test_a_local_black_box_gives_no_gradients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    box = LocalBlackBox(model, (0.5,) * 3, (0.5,) * 3)
    pixels = torch.rand(2, 3, 2, 2)
    scores = box.scores(pixels)
    assert not scores.requires_grad
    torch.testing.assert_close(scores, model((pixels - 0.5) / 0.5))
    with pytest.raises(ValueError, match="gives no gradients"):
        box.scores(pixels.requires_grad_())


def test_a_budget_counts_images() -> None:
    box = LocalBlackBox(lambda pixels: torch.zeros(len(pixels), 3), (0.0,) * 3, (1.0,) * 3, budget=7)
    box.scores(PIXELS)
    with pytest.raises(BudgetSpent, match=r"--budget 7: 5 images were asked, and 5 more are needed"):
        box.scores(PIXELS)
    assert box.asked == 5


# --- a service that fails ---


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (500, b"out of memory", "answered 500 Internal Server Error (out of memory)"),
        (503, b"", "answered 503"),
        (200, b"<html>", "something that is not JSON"),
        (200, b'{"scores": [[1, 2]]}', "1 x 2 scores for 5 images of 3 classes"),
        (200, b'{"scores": "many"}', "scores for 5 images of 3 classes"),
        (200, b'{"error": 1}', "no scores for 5 images"),
        (200, b'{"scores": [[NaN,1,1],[1,1,1],[1,1,1],[1,1,1],[1,1,1]]}', "not finite"),
        (0, b"", "broke off"),
    ],
)
def test_what_may_pass_is_tried_again_and_then_named(status: int, content: bytes, said: str) -> None:
    waits: list[float] = []
    with answering(lambda n, body: (status, content, {}) if n < 2 else (200, right(body), {})) as url:
        box = box_for(url, waits)
        assert box.scores(PIXELS).tolist() == [[1.0, 2.0, 3.0]] * 5
        assert waits == [0.5, 1.0] and box.asked == 15  # an attempt may cost as much as an answer
    with answering(lambda n, body: (status, content, {})) as url, pytest.raises(BlackBoxError) as raised:
        box_for(url).scores(PIXELS)
    message = str(raised.value)
    assert (said in message or (status == 0 and "cannot be reached" in message)) and "4 times in a row" in message
    assert "--resume" in message and "\n" not in message and isinstance(raised.value, UserError)


def test_a_service_says_how_long_to_wait() -> None:
    waits: list[float] = []
    answers = {0: (429, b"", {"Retry-After": "7"}), 1: (429, b"", {"Retry-After": "soon"})}
    with answering(lambda n, body: answers.get(n, (200, right(body), {}))) as url:
        box_for(url, waits).scores(PIXELS)
    assert waits == [7.0, 1.0]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_wrong_request_is_not_repeated(status: int) -> None:
    asked = []
    refused = pytest.raises(BlackBoxError, match=rf"answered {status} .*check address, token and format")
    with answering(lambda n, body: asked.append(n) or (status, b"no", {})) as url, refused:
        box_for(url).scores(PIXELS)
    assert asked == [0]


def test_a_service_that_is_late_or_gone() -> None:
    hold = threading.Event()
    with answering(lambda n, body: (0 * hold.wait(5), b"", {})) as url:
        with pytest.raises(BlackBoxError, match=r"did not answer within 0\.2 s, 1 times"):
            box_for(url, timeout=0.2, retries=0).scores(PIXELS)
        hold.set()
    with pytest.raises(BlackBoxError, match=r"cannot be reached .*, 4 times in a row"):
        box_for(url).scores(PIXELS)


def test_budget_rate_and_parts() -> None:
    waits, sizes = [], []
    with answering(lambda n, body: sizes.append(len(body["images"])) or (200, right(body), {})) as url:
        box = box_for(url, waits, per_request=2, rate=1.0, budget=6)
        box.scores(PIXELS)
        assert sizes == [2, 2, 1]
        # The second and third request wait until the images before them have had a second each.
        assert [round(wait) for wait in waits] == [2, 4]
        with pytest.raises(BudgetSpent):
            box.scores(PIXELS)
    assert box.asked == 5


def test_probabilities_become_logits() -> None:
    content = json.dumps({"scores": [[0.5, 0.25, 0.25]]}).encode()
    with answering(lambda n, body: (200, content, {})) as url:
        scores = box_for(url, gives="probabilities").scores(PIXELS[:1])
    torch.testing.assert_close(scores.softmax(-1), torch.tensor([[0.5, 0.25, 0.25]]))
    refused = pytest.raises(BlackBoxError, match=r"outside 0 \.\. 1")
    with answering(lambda n, body: (200, b'{"scores": [[2, -1, 0]]}', {})) as url, refused:
        box_for(url, gives="probabilities", retries=0).scores(PIXELS[:1])


def test_pixels_arrive_as_bytes() -> None:
    seen: list[Tensor] = []

    def score(images: list[Any]) -> Tensor:
        seen.extend(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images)
        return torch.zeros(len(images), 3)

    with serving(ScoreServer(score, CLASSES, (96, 96))) as url:
        box_for(url).scores(PIXELS)
    expected = (PIXELS * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flatten(1)
    assert torch.equal(torch.stack(seen), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"timeout": 0}, "timeout"), ({"per_request": 0}, "per_request"), ({"rate": -1.0}, "rate")],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        HttpOptions("http://127.0.0.1", **options)
    with pytest.raises(UserError, match="starts with http"):
        HttpBlackBox(HttpOptions("ftp://x"), 3)
