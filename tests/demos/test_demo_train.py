"""Training from the page in a real browser: upload, train, search with the result, compare; and an uploaded adapter."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from test_demo_app import ITS_IMAGE, QUERY, wait_for_index
from test_demo_browser import DESK, PATIENCE, PHONE, browser, grounded, iou, open_tab, shots, wait_for_bars

from helpers.browser import choose_file
from helpers.demo_server import DemoServer, demo_server
from helpers.scripts import load_script
from helpers.shipped import trained_parameters
from vlkit.cli.config import parse
from vlkit.drawn.album import AlbumImage, demo_album
from vlkit.drawn.dice import Dice
from vlkit.drawn.kind_images import kind_image
from vlkit.drawn.world import generator
from vlkit.engine.checkpoint import load_adapter
from vlkit.errors import UserError
from vlkit.serving import shipped_adapters

__all__ = ["browser", "shots"]  # fixtures
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory) -> Iterator[DemoServer]:
    """A demo that trains for its visitors."""
    with demo_server("--train", "--train_dir", tmp_path_factory.mktemp("trained")) as running:
        wait_for_index(Client(running.url, verbose=False))
        yield running


@pytest.fixture
def page(browser, server: DemoServer) -> Iterator:
    page = browser.new_page(viewport=DESK)
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_selector("#search-text textarea")
    yield page
    page.close()
    assert not errors


def zipped_images(path: Path) -> Path:
    """Eight drawn images and their captions."""
    entries = demo_album().about_images[66:74]
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.write(demo_album().images / entry.name, f"mine/{entry.name}")
        lines = [f'{entry.name},"{entry.captions[0]}"' for entry in entries]
        archive.writestr("mine/list.csv", "\n".join(["image,caption", *lines]))
    return path


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_two_models_answer_one_question_and_find_one_phrase(browser, server, shots, size: dict[str, int]):
    page = browser.new_page(viewport=size)
    page.set_default_timeout(PATIENCE)
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_selector("#search-text textarea")
    open_tab(page, "Compare")
    client = Client(server.url, verbose=False)
    page.locator("#compare-task label", has_text="Ask").click()
    entry = next(entry for entry in demo_album().about_images if entry.questions)
    asked, image = entry.questions[0][0], handle_file(str(demo_album().images / entry.name))
    # It opens answered, by the adapter and by the base alone.
    base = wait_for_sides(page, client, image, asked, "zero-shot tiny")
    page.locator("#compare-ask-left-facts", has_text="MiB of saved activations (predicted)").wait_for()
    assert f"{trained_parameters('vqa'):,} parameters trained" in page.locator("#compare-ask-left-facts").inner_text()
    page.locator("#compare-ask-right-facts", has_text="nothing was trained").wait_for()
    page.screenshot(path=shots / f"compare_ask_{size['width']}.png", full_page=True)
    page.locator("#compare-ask-right input").click()
    page.get_by_role("option", name="SHERL, image hidden").click()
    hidden = wait_for_sides(page, client, image, asked, "SHERL, image hidden")
    assert hidden != base
    page.locator("#compare-ask-right-facts", has_text="from the question alone").wait_for()

    page.locator("#compare-task label", has_text="Ground").click()
    page.locator("#compare-ask-left").wait_for(state="hidden")  # one task at a time
    both = [compared_boxes(client, entry) for entry in reversed(grounded()[1:])]  # the tab of one model has the first
    hits = [[overlap > 0.5 for overlap in overlaps] for _, overlaps in both]
    assert sum(adapter for adapter, _ in hits) > len(hits) / 2 > sum(base for _, base in hits)
    found, phrase = both[0][0], grounded()[-1].phrases[0][0]  # what the page opens with
    assert found[0]["saved_bytes"] > 2**20 > found[1]["saved_bytes"] == 0
    for side, each in zip(("left", "right"), found, strict=True):
        drawing = page.locator(f"#compare-ground-{side}-results img")
        drawing.wait_for()
        assert drawing.get_attribute("alt") == f"{each['model']}. The image with a box around: {phrase}"
    page.locator("#compare-ground-left-facts", has_text="MiB of saved activations (predicted)").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
    page.screenshot(path=shots / f"compare_ground_{size['width']}.png", full_page=True)
    page.fill("#compare-ground-phrase textarea", "the sun")
    page.click("#compare-ground-button")
    page.locator("#compare-ground-right-results img[alt$=': the sun']").wait_for()
    page.close()


def compared_boxes(client: Client, entry: AlbumImage) -> tuple[list[dict], list[float]]:
    """What adapter and base alone answer to the first phrase of an image, and the IoU of their first boxes."""
    phrase, truth = entry.phrases[0]
    image = handle_file(str(demo_album().images / entry.name))
    found = client.predict(image, phrase, "SHERL", "zero-shot tiny", api_name="/compare_boxes")
    return found, [iou(each["boxes"][0]["box"], truth) for each in found]


def wait_for_sides(page, client: Client, image: object, question: str, right: str) -> list[str]:
    """Until both sides show what the endpoint answers; the answers on the right."""
    found = client.predict(image, question, "SHERL", right, api_name="/compare_answers")
    for side, each in zip(("left", "right"), found, strict=True):
        wait_for_bars(page, f"compare-ask-{side}", [answer["answer"] for answer in each["answers"]], "results")
    return [answer["answer"] for answer in found[1]["answers"]]


def test_train_on_a_few_images_then_search_and_compare_with_the_result(browser, server, page, shots, tmp_path):
    open_tab(page, "Train")
    page.locator("#train-predicted", has_text="saved activations").wait_for()
    choose_file(page, "#train-files", zipped_images(tmp_path / "mine.zip"))
    page.fill("#train-name input, #train-name textarea", "few <b>")
    page.fill("#train-epochs input[type=number]", "1")
    page.locator("#train-epochs input[type=number]").blur()
    page.click("#train-start")
    page.locator("#train-status", has_text="few-b-").wait_for()
    other = browser.new_page(viewport=PHONE)  # a second visitor
    other.set_default_timeout(PATIENCE)
    other.goto(server.url, wait_until="domcontentloaded")
    other.wait_for_selector("#search-text textarea")
    open_tab(other, "Train")
    other.get_by_text("This run was begun in another window.").wait_for()
    assert other.locator("#train-start").is_disabled()
    other.screenshot(path=shots / "phone_train.png", full_page=True)
    other.close()
    page.locator("#train-status", has_text=re.compile("is ready|not trained")).wait_for()
    status = page.locator("#train-status").inner_text()
    name = re.search(r"(SHERL \(few-b-[\d-]+\)) is ready", status)[1]
    config, tensors = load_adapter(re.search(r"Its folder: (\S+);", status)[1])
    assert config["task"] == "retrieval" and sum(tensor.numel() for tensor in tensors.values()) == 669_328
    page.locator("#train-meter", has_text="measured: whole step").wait_for()
    page.screenshot(path=shots / "train.png", full_page=True)

    page.click("#train-use")
    page.fill("#search-text textarea", QUERY)
    page.click("#search-button")
    page.locator(".shots:visible", has_text=name).locator("img").first.wait_for()
    first = page.locator(".shots:visible").first
    assert first.locator("img").first.get_attribute("alt").endswith(ITS_IMAGE)
    assert page.locator(".shots:visible").count() == 2  # it, and the base without an adapter
    answer = Client(server.url, verbose=False).predict(QUERY, 3, name, api_name="/search")
    assert answer["model"] == name and answer["results"][0]["picture"] == ITS_IMAGE

    open_tab(page, "Compare")
    page.locator("#compare-left-results", has_text=name).locator("img").first.wait_for()
    page.locator("#compare-left-facts", has_text="669,328 parameters trained").wait_for()
    page.locator("#compare-right-facts", has_text="nothing was trained").wait_for()
    page.screenshot(path=shots / "compare.png", full_page=True)


def drawn(folder: Path, kind: str, numbers: range) -> list[Path]:
    """Images of one thing of that kind."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{kind}-{number}.png" for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        Image.fromarray(kind_image(kind, Dice(generator(7, "train", number, 1)))).save(file)
    return files


def test_train_two_classes_then_classify_a_new_image_with_the_result(server, page, shots, tmp_path):
    kinds = {"mine": "cat", "yours": "umbrella"}  # names that tell the base nothing
    open_tab(page, "Train")
    page.locator("#train-what label", has_text="Classes").click()
    page.locator("#train-predicted", has_text="a head for 100 classes").wait_for()
    for count, (name, kind) in enumerate(kinds.items(), start=1):
        choose_file(page, "#train-files", drawn(tmp_path / kind, kind, range(6)))
        page.fill("#train-class input, #train-class textarea", name)
        page.click("#train-add")
        page.locator("#train-groups", has_text=f"{6 * count} images added").wait_for()
    page.fill("#train-name input, #train-name textarea", "two")
    page.click("#train-start")
    page.locator("#train-status", has_text=re.compile("two-.* is ready|not trained")).wait_for()
    status = page.locator("#train-status").inner_text()
    name = re.search(r"(SHERL \(two-[\d-]+\)) is ready and chosen in Classify", status)[1]
    config, _ = load_adapter(re.search(r"Its folder: (\S+);", status)[1])
    assert config["task"] == "classification" and config["head"]["classes"] == ["mine", "yours"]
    page.locator("#train-meter", has_text="all images, adapter").wait_for()
    page.screenshot(path=shots / "train_classes.png", full_page=True)

    page.get_by_role("button", name="Classify with it").click()
    page.locator("#classify-names").wait_for()
    assert page.locator("#classify-names textarea").input_value() == ""
    assert page.get_by_role("combobox", name="Model").locator("visible=true").input_value() == name
    client = Client(server.url, verbose=False)
    for right, kind in kinds.items():
        (new,) = drawn(tmp_path / kind, kind, range(20, 21))
        page.get_by_label("Remove Image").locator("visible=true").click()
        choose_file(page, "#classify-image", new, arrived="img")
        page.click("#classify-button")
        wait_for_bars(page, "classify", [right, next(name for name in kinds if name != right)])
        answer = client.predict(handle_file(str(new)), "", 5, name, api_name="/classify")
        assert answer[0]["class"] == right and answer[0]["probability"] > 0.5
    page.screenshot(path=shots / "classify_trained.png", full_page=True)


def test_an_uploaded_adapter_can_be_chosen_and_a_pickle_is_refused(server, page, tmp_path):
    folder = next(folder for folder in shipped_adapters() if folder.name == "vqa")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"run/{file.name}")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("model.pt", b"code")
    for name, said in {"evil": "model.pt: can run code", "mine": "SHERL (mine) (vqa) was added"}.items():
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_selector("#search-text textarea")
        open_tab(page, "Compare")
        page.get_by_text("Add an adapter of your own").click()
        choose_file(page, "#adapter-files", tmp_path / f"{name}.zip")
        page.click("#adapter-add")
        page.get_by_text(said).first.wait_for()
    open_tab(page, "Ask")
    page.get_by_label("Model").locator("visible=true").wait_for()
    found = Client(server.url, verbose=False).predict(api_name="/about")["adapters"]
    assert found["vqa"] == ["SHERL", "SHERL (mine)"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "::"])
def test_training_on_an_open_host_needs_a_password(host: str):
    config = load_script("demos/app.py").Config
    with pytest.raises(UserError, match=f"--train: on --host {host} anybody could train .* --auth"):
        parse(config, ["--train", "--host", host])
    assert parse(config, ["--train", "--host", host, "--auth", "a:b"]).train
    assert not parse(config, ["--host", host]).trusted and parse(config, ["--train"]).trusted
    with pytest.raises(UserError, match="no effect without --train"):
        parse(config, ["--train_dir", "x"])
