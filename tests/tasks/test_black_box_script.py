"""BlackVIP end to end: a coordinator trained through HTTP, interrupted, resumed, and loaded again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlkit
from helpers import tiny
from helpers.scripts import call, load_script, refuse
from vlkit.adapters.blackvip.coordinator import Coordinator
from vlkit.adapters.blackvip.decoder import BorderPrompt, PromptDecoder
from vlkit.cli.config import parse
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.encoders.stage import stage_vision
from vlkit.errors import UserError
from vlkit.serving.black_box import BlackBoxError
from vlkit.serving.score_server import ScoreServer
from vlkit.tasks.classification.black_box import load_coordinator

SCRIPT = "tasks/classification/black_box.py"
COLORS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Plain images of three colours: 4 to train on and 2 to test on of each."""
    root, rng = tmp_path_factory.mktemp("colors"), np.random.default_rng(0)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for name, color in COLORS.items():
        for i in range(6):
            noise = rng.integers(-30, 30, (96, 96, 3))
            Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(root / f"{name}{i}.png")
            split = "train" if i < 4 else "test"
            splits[split].append({"id": f"{name}/{i}", "image": f"{name}{i}.png", "label": name})
    extra = {"classes": list(COLORS), "templates": ["{}"]}
    write_dataset(
        root,
        name="colors",
        task="classification",
        splits=splits,
        media_root=root,
        source="made for a test",
        extra=extra,
    )
    return root


QUICK = ("--epochs", 2, "--batch_size", 6, "--data.shots", 2, "--spsa.averages", 1, "--device", "cpu", "--eps", 0.1)


@pytest.fixture
def service(running: Any) -> Any:
    running.fail_at, running.requests = -1, 0
    return running


@pytest.fixture(scope="module")
def running(dataset: Path) -> Any:
    """The embedded base behind a real server; ``fail_at`` = request that it refuses."""
    module = load_script("tasks/classification/black_box_server.py")
    pipeline = module.open_pipeline(parse(module.Config, ["--data.root", str(dataset), "--device", "cpu"]))
    server = module.make_server(pipeline, "127.0.0.1", 0)
    server.fail_at, server.requests = -1, 0
    answer = ScoreServer.answer

    def counted(request: Any) -> dict[str, Any]:
        server.requests += 1
        if server.requests == server.fail_at:
            raise UserError("gone")
        return answer(server, request)

    server.answer = counted
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def words(dataset: Path, output: Path, server: ScoreServer | None = None) -> list[object]:
    given: list[object] = ["--data.root", dataset, "--output", output, *QUICK]
    return given + (["--http.url", f"http://127.0.0.1:{server.server_port}"] if server else [])


def test_through_http(dataset: Path, service: Any, tmp_path: Path) -> None:
    call(SCRIPT, *words(dataset, tmp_path / "run", service), "--budget", 36)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["adapter"]["kind"] == "blackvip" and {"top1", "ece"} <= set(metrics["after"])
    # 2 steps of 6 images on both sides, and the 6 test images before and after.
    assert metrics["images_asked"] == {"training": 24, "all": 36} and metrics["steps"] == 2
    assert metrics["saved_activation_bytes"] == 0
    requests = service.requests
    call(SCRIPT, *words(dataset, tmp_path / "run", service), "--budget", 36, "--resume")
    assert service.requests == requests  # a finished run asks nothing again
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["after"] == metrics["after"]
    found = load_coordinator(tmp_path / "run")
    image = Image.open(dataset / "red0.png")
    prompted = found.prompt([image])
    assert prompted.shape == (1, 3, 96, 96) and prompted.min() >= 0 and prompted.max() <= 1
    assert found.classes == list(COLORS)
    assert (prompted - torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255).abs().max() > 1e-3


def test_a_run_is_loaded_as_a_classifier(dataset: Path, service: Any, tmp_path: Path) -> None:
    """``vlkit.load``, evaluate and predict ask the black box of the run, in this process or behind HTTP."""
    for name, server in (("local", None), ("http", service)):
        run = tmp_path / name
        call(SCRIPT, *words(dataset, run, server))
        pipeline, prompter = vlkit.load(run, device="cpu"), load_coordinator(run)
        image = Image.open(dataset / "red0.png")
        logits = pipeline.labeller.target.scores(prompter.prompt([image]))[0]
        found = pipeline.classify(image)
        assert [c for c, _ in found] == [list(COLORS)[i] for i in logits.argsort(descending=True)]
        assert sum(p for _, p in found) == pytest.approx(1) and found[:1] == pipeline.classify(image, k=1)
        call("tasks/classification/evaluate.py", "--model", run, "--data.root", dataset, "--json", run / "test.json")
        assert json.loads((run / "test.json").read_text())["top1"] == pytest.approx(
            json.loads((run / "metrics.json").read_text())["after"]["top1"]
        )
        call("tasks/classification/predict.py", "--model", run, "--images", dataset, "--output", run / "classes.json")
        assert len(json.loads((run / "classes.json").read_text())) == 18
        with pytest.raises(UserError, match="scores its own classes alone"):
            pipeline.classify(image, classes=["a", "b"])
        with pytest.raises(UserError, match="task 'vqa' is needed"):
            vlkit.load(run, task="vqa")
        assert vlkit.load(run, device="cpu", mix=0.0).labeller.prompter.coordinator.eps == 0
    about = json.loads((tmp_path / "local" / "coordinator.json").read_text())
    (tmp_path / "local" / "coordinator.json").write_text(json.dumps({**about, "target": {}}))
    with pytest.raises(UserError, match="does not say which model was asked"):
        vlkit.load(tmp_path / "local")


def test_a_loaded_folder_does_not_choose_the_secret_that_is_sent(
    dataset: Path, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(SCRIPT, *words(dataset, tmp_path, service))
    file = tmp_path / "coordinator.json"
    about = json.loads(file.read_text())
    assert about["target"] == {"url": f"http://127.0.0.1:{service.server_port}", "gives": "logits"}
    file.write_text(json.dumps({**about, "target": {**about["target"], "token_variable": "A_SECRET"}}))
    monkeypatch.setenv("A_SECRET", "secret")
    headers = vlkit.load(tmp_path, device="cpu").labeller.target._headers()
    assert "Authorization" not in headers
    monkeypatch.setenv("VLKIT_BLACK_BOX_TOKEN", "meant for it")
    headers = vlkit.load(tmp_path, device="cpu").labeller.target._headers()
    assert headers["Authorization"] == "Bearer meant for it"


def test_a_target_of_another_image_size_is_loaded_as_it_was(dataset: Path, tmp_path: Path) -> None:
    call(SCRIPT, *words(dataset, tmp_path), "--image_size", 120, "--epochs", 1)
    pipeline = vlkit.load(tmp_path, device="cpu")
    assert pipeline.labeller.prompter.preprocess.size == (120, 120)
    call("tasks/classification/evaluate.py", "--model", tmp_path, "--data.root", dataset, "--json", tmp_path / "t.json")
    after = json.loads((tmp_path / "metrics.json").read_text())["after"]
    assert json.loads((tmp_path / "t.json").read_text())["ece"] == pytest.approx(after["ece"], abs=1e-3)


def test_a_row_of_the_comparison(dataset: Path, tmp_path: Path) -> None:
    options = "epochs=1:batch_size=6:data.shots=2:spsa.averages=1:eps=0.1"
    given = ("--task", "classification", "--kinds", f"zero-shot,blackvip:{options}", "--seeds", 1)
    call("tasks/compare.py", *given, "--flags", f'["data.root={dataset}"]', "--output", tmp_path)
    zero_shot, blackvip = (tmp_path / "results.md").read_text().splitlines()[-2:]
    assert blackvip.startswith("| blackvip:") and zero_shot.startswith("| zero-shot")
    assert len(blackvip.split("|")) == len(zero_shot.split("|"))


@pytest.mark.parametrize("fail_at", [1, 3, 6])
def test_an_outage_loses_nothing(fail_at: int, dataset: Path, service: Any, tmp_path: Path) -> None:
    """Whichever request fails (measurement, training, last measurement): the run ends as one without an outage."""
    call(SCRIPT, *words(dataset, tmp_path / "whole", service))
    requests, service.requests, service.fail_at = service.requests, 0, fail_at
    with pytest.raises(BlackBoxError, match="answered 400"):
        call(SCRIPT, *words(dataset, tmp_path / "run", service))
    service.fail_at = -1
    call(SCRIPT, *words(dataset, tmp_path / "run", service), "--resume")
    assert service.requests == requests + 1  # no answer was asked for twice
    one, other = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "run"))
    assert one["after"] == other["after"] and one["before"] == other["before"]
    weights = [load_coordinator(tmp_path / name).coordinator.decoder.state_dict() for name in ("whole", "run")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_spent_budget_is_raised_and_the_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    call(SCRIPT, *words(dataset, tmp_path / "whole"))
    call(SCRIPT, *words(dataset, tmp_path / "run"), "--budget", 24)  # pays for one step
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 1
    assert "--budget 30: one step and the last measurement need 42" in refuse(
        SCRIPT, *words(dataset, tmp_path / "run"), "--resume", "--budget", 30
    )
    call(SCRIPT, *words(dataset, tmp_path / "run"), "--resume", "--budget", 42)
    weights = [load_coordinator(tmp_path / name).coordinator.decoder.state_dict() for name in ("whole", "run")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--budget", 3), "--budget 3: 0 images were asked, and 6 more are needed"),
        (("--http.url", "localhost"), "starts with http"),
        (("--eps", 0), "--eps 0"),
        (("--channels", 7), "--channels 7"),
        (("--spsa.a", -1), "--spsa.a -1"),
        (("--http.token_variable", "NO_SUCH_TOKEN", "--http.url", "http://127.0.0.1:9"), "NO_SUCH_TOKEN: is not set"),
    ],
)
def test_wrong_input_is_named(given: tuple[object, ...], said: str, dataset: Path, tmp_path: Path) -> None:
    assert said in refuse(SCRIPT, *words(dataset, tmp_path / "run"), *given)


def test_load_coordinator_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no coordinator\.json"):
        load_coordinator(tmp_path)
    (tmp_path / "coordinator.json").write_text("{}")
    with pytest.raises(UserError, match="field 'format'"):
        load_coordinator(tmp_path)
    (tmp_path / "coordinator.json").write_text('{"format": "vlkit-coordinator"}')
    with pytest.raises(UserError, match="cannot be read"):
        load_coordinator(tmp_path)


# --- the coordinator ---


def coordinator(**options: Any) -> Coordinator:
    torch.manual_seed(0)
    given = {"size": (32, 32), **options}
    return Coordinator(stage_vision(tiny.tiny_clip()), (0.5,) * 3, (0.25,) * 3, **given)


@pytest.mark.parametrize("feature", ["auto", "cls", "normed", "pooled"])
def test_features(feature: str) -> None:
    model, x = coordinator(feature=feature, channels=64), tiny.images(2)
    tower = model.encoder
    stream = tower.embed(x)
    for i in range(tower.depth):
        stream = tower.block(i, stream)
    expected = {"pooled": tower.pool(stream), "normed": tower.tokens(stream)[:, 0]}.get(feature, stream.hidden[:, 0])
    torch.testing.assert_close(model.features(x), expected)


def test_prompted_pixels_stay_pixels_and_only_the_decoder_trains() -> None:
    model, x = coordinator(eps=50.0, channels=64), tiny.images(3)
    model.train()
    assert not model.encoder.training and model.decoder.training
    out = model(x)
    assert out.min() >= (0 - 0.5) / 0.25 and out.max() <= (1 - 0.5) / 0.25
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"decoder"}
    assert next(iter(dict(model.decoder.named_parameters()))) == "trigger"


def test_published_sizes() -> None:
    assert sum(p.numel() for p in PromptDecoder(768).parameters()) == 9920
    assert PromptDecoder(2048, 64, arch="resnet").trigger.numel() == 1088
    assert PromptDecoder(768)(torch.zeros(1, 768)).shape == (1, 3, 224, 224)


def test_border(dataset: Path, tmp_path: Path) -> None:
    """VP: one border for all images, of the published size."""
    assert sum(p.numel() for p in BorderPrompt((224, 224)).parameters()) == 69840
    prompt = BorderPrompt((8, 10), 2)(torch.zeros(3, 0))
    assert (
        prompt.shape == (1, 3, 8, 10) and not prompt[:, :, 2:6, 2:8].any() and prompt.count_nonzero() == 3 * (80 - 24)
    )
    call(SCRIPT, *words(dataset, tmp_path / "run"), "--border", 10, "--spsa.a", 10, "--epochs", 1)
    found = load_coordinator(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["adapter"]["kind"] == "vp"
    image = Image.open(dataset / "red0.png")
    change = found.prompt([image])[0] - torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert change[:, 10:-10, 10:-10].abs().max() < 1e-6 < change[:, :10].abs().max()
    assert "--border 48" in refuse(SCRIPT, *words(dataset, tmp_path / "other"), "--border", 48)


@pytest.mark.parametrize("size", [(32, 32), (40, 40), (48, 64)])
def test_any_image_size(size: tuple[int, int]) -> None:
    model = coordinator(size=size, encoder_size=(32, 32), channels=64)
    assert model(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


def test_an_encoder_without_class_token_is_refused() -> None:
    encoder = stage_vision(tiny.tiny_resnet_clip())
    with pytest.raises(UserError, match="use --feature pooled"):
        Coordinator(encoder, (0.5,) * 3, (0.5,) * 3, (64, 64), feature="cls")
    assert Coordinator(encoder, (0.5,) * 3, (0.5,) * 3, (64, 64)).feature == "pooled"


def test_classes_of_the_dataset_are_asked_for(dataset: Path) -> None:
    assert Dataset.open(dataset, "classification").extra["classes"] == list(COLORS)
