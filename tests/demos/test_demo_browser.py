"""The web demo in a real browser: every tab, one action each, what is then seen; screenshots in a folder.

Skipped where there is no Chromium, except under CI, where that is a failure. ``VLKIT_SCREENSHOTS=DIR`` keeps the
screenshots.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from test_demo_app import ITS_IMAGE, QUERY, wait_for_index

from helpers.browser import choose_file
from helpers.demo_server import demo_server
from vlkit.drawn.album import AlbumImage, demo_album
from vlkit.serving import shipped_adapters

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000
"""Milliseconds; a busy machine is slow."""
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TABS = ("Search", "Video search", "Ask", "Caption", "Ground", "Moments", "Classify", "Compare", "Memory")
SHIPPED = {folder.name for folder in shipped_adapters()}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if CHROMIUM is None or sync_playwright is None:
        reason = "needs Chromium and the Python package playwright"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def url(browser) -> Iterator[str]:
    """A running demo that has indexed its images and clips."""
    with demo_server() as server:
        wait_for_index(Client(server.url, verbose=False))
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    """The demo's endpoints: the page must show what they answer to the same question."""
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("VLKIT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


at_both_widths = pytest.mark.parametrize("page", [DESK, PHONE], ids=["desk", "phone"], indirect=True)
"""For a test of one action in each tab."""


@pytest.fixture
def page(browser, url: str, request) -> Iterator:
    """The demo on a desktop screen, or as a test asks for; the test fails if the page logs an error."""
    page = browser.new_page(viewport=getattr(request, "param", DESK))
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("#search-text textarea")
    yield page
    page.close()
    assert not errors


def open_tab(page, name: str) -> None:
    """Click a tab of the page by its name; on a narrow screen it may be in the menu behind the dots."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu:visible > button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()


def snap(page, shots: Path, name: str) -> None:
    """A screenshot of the whole page, which is not wider than the screen."""
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1
    page.screenshot(path=shots / f"{name}_{page.viewport_size['width']}.png", full_page=True)


def wait_until(page, condition: str, *values: object) -> None:
    """Wait for a JavaScript condition on ``values``: a tab may still show the answer to an earlier question."""
    page.wait_for_function(f"(values) => {condition}", arg=list(values))


def wait_for_bars(page, tab: str, names: list[str], result: str = "result") -> None:
    """Until the bars of a tab have these names, in this order."""
    wait_until(
        page,
        "JSON.stringify([...document.querySelectorAll(values[0])].map(e => e.innerText)) == values[1]",
        f"#{tab}-{result} .name",
        json.dumps(names, separators=(",", ":"), ensure_ascii=False),
    )


def wait_for_images(page, count: int) -> list[str]:
    """The alt texts of the found images, once there are so many in sight."""
    found = page.locator(".shots:visible img")
    found.nth(count - 1).wait_for()
    wait_until(
        page, "[...document.querySelectorAll('.shots img')].filter(e => e.offsetParent).length == values[0]", count
    )
    return found.evaluate_all("all => all.map(image => image.alt)")


def assert_tells_how_to_train(page, task: str) -> None:
    """A tab without a model names the command that makes one."""
    assert f"tasks/{task}/train.py" in page.locator(f"#no-{task}").inner_text()


@at_both_widths
def test_words_find_the_right_image_first_and_before_after_shows_both(page, shots: Path):
    page.fill("#search-text textarea", QUERY)
    page.press("#search-text textarea", "Enter")
    alts = wait_for_images(page, 12)
    assert alts[0].endswith(ITS_IMAGE)
    page.locator("#library").wait_for(state="hidden")  # the results take its place
    assert alts[:6] != alts[6:]  # the base without the adapter gives other scores
    assert all(re.fullmatch(r"0\.\d{3} image\d\d\.jpg", alt) for alt in alts)
    snap(page, shots, "search")
    page.uncheck("#before-after input")
    page.click("#search-button")
    assert wait_for_images(page, 6) == alts[:6]


def test_at_first_glance_there_are_images_and_answers(browser, url: str, page, shots: Path):
    page.locator("#library img").nth(11).wait_for()
    assert page.locator("#library").is_visible() and page.locator(".shots:visible").count() == 0
    title = page.locator("#title").inner_text()
    assert "tiny" in title and "SHERL adapter" in title and " MB) was trained" in title
    page.screenshot(path=shots / "opened_search.png", full_page=True)
    answers = {
        **{"Ask": "#ask-result li", "Ground": "#ground-boxes tbody tr", "Classify": "#classify-result li"},
        "Memory": "#memory-result li[data-method=full]",
    }
    if "video_retrieval" in SHIPPED:
        answers["Video search"] = "#video-matches img"
    for tab, answer in answers.items():
        open_tab(page, tab)
        page.locator(answer).first.wait_for()
        page.screenshot(path=shots / f"opened_{tab.split()[0].lower()}.png", full_page=True)
    entry = grounded()[0]
    open_tab(page, "Ground")
    assert len(boxes_for(page, "; ".join(phrases_of(entry)))) == len(phrases_of(entry)) > 1
    link = browser.new_page(viewport=DESK)
    link.set_default_timeout(PATIENCE)
    link.goto(f"{url}/?q={quote(QUERY)}", wait_until="domcontentloaded")
    assert wait_for_images(link, 12)[0].endswith(ITS_IMAGE)
    assert link.locator("#search-text textarea").input_value() == QUERY
    link.close()


def test_an_example_runs_when_clicked(page):
    page.get_by_role("button", name=QUERY).click()
    assert wait_for_images(page, 12)[0].endswith(ITS_IMAGE)


def test_a_image_is_uploaded_searched_described_and_added(page, shots: Path, tmp_path: Path):
    image = demo_album().images / ITS_IMAGE
    page.get_by_role("tab", name="By image").click()
    choose_file(page, "#search-image", image, arrived="img")
    page.click("#search-image-button")
    assert wait_for_images(page, 12)[0] == f"1.000 {ITS_IMAGE}"

    page.get_by_text("Add your own images").click()
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(np.full((80, 80, 3), (250, 10, 250), np.uint8)).save(folder / "pink.png")
    (folder / "fake.jpg").write_text("no image")
    with page.expect_file_chooser() as chooser:
        page.click("#add-folder")
    chooser.value.set_files(folder)
    status = page.locator("#index-status", has_text="1 added by you")
    status.get_by_text("fake.jpg: cannot be used as an image (not an image)").wait_for()
    page.screenshot(path=shots / "search_by_picture.png", full_page=True)

    page.get_by_role("tab", name="Image to text").click()
    choose_file(page, "#words-image", image, arrived="img")
    page.locator("textarea").filter(visible=True).first.fill(f"a green bus\n{QUERY}\na cat on a hat")
    page.click("#words-button")
    page.locator("#words-result li").nth(2).wait_for()
    assert QUERY in page.locator("#words-result li").first.inner_text()
    page.screenshot(path=shots / "image_to_words.png", full_page=True)


@at_both_widths
def test_videos(page, client: Client, shots: Path):
    open_tab(page, "Video search")
    if "video_retrieval" not in SHIPPED:
        assert_tells_how_to_train(page, "video_retrieval")
        return
    query = demo_album().about_clips[2].captions[-1]
    ask_for_video(page, query)
    assert_best_video(page, client, query)
    snap(page, shots, "video")


def ask_for_video(page, query: str) -> None:
    page.fill("#video-text textarea", query)
    page.click("#video-button")


def assert_best_video(page, client: Client, query: str) -> None:
    """The moment that the endpoint finds is the first of the matches, and what the player holds."""
    best, *_ = client.predict(query, api_name="/search_video")
    clock = " to ".join(f"0:{time:04.1f}" for time in (best["start"], best["end"]))
    label = f"{best['video']}, {clock}"
    wait_until(page, "document.querySelector('#video-player')?.innerText.includes(values[0])", label)
    wait_until(page, "document.querySelector('#video-matches img')?.alt.endsWith(values[0])", label)
    length = "Math.abs(document.querySelector('#video-player video')?.duration - values[0]) < 0.3"
    wait_until(page, length, best["end"] - best["start"])


@at_both_widths
def test_ask(page, client: Client, shots: Path):
    open_tab(page, "Ask")
    if "vqa" not in SHIPPED:
        assert_tells_how_to_train(page, "vqa")
        return
    assert_second_example_is_answered(page, client)
    values = page.locator("#ask-result .value").all_inner_texts()
    shares = [float(value.removesuffix("%")) for value in values]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and shares[0] > 10
    widths = page.locator("#ask-result .fill").evaluate_all("all => all.map(bar => bar.getBoundingClientRect().width)")
    full = page.locator("#ask-result .track").first.bounding_box()["width"]
    np.testing.assert_allclose(widths, np.array(shares) / 100 * full, atol=1.5)
    snap(page, shots, "ask")


def assert_second_example_is_answered(page, client: Client) -> None:
    """A click on it shows the endpoint's answers to it, where those to the first stood."""
    entry = [entry for entry in demo_album().about_images if entry.questions][1]
    page.locator("tr.tr-body:visible").nth(1).click()
    wait_until(page, "document.querySelector('#ask-question textarea').value != values[0]", first_question())
    question = page.locator("#ask-question textarea").input_value()
    assert question in [asked for asked, *_ in entry.questions]
    answers = client.predict(handle_file(str(demo_album().images / entry.name)), question, api_name="/answer")
    wait_for_bars(page, "ask", [each["answer"] for each in answers])


def first_question() -> str:
    """What the tab opens with."""
    return next(entry.questions[0][0] for entry in demo_album().about_images if entry.questions)


def grounded() -> list[AlbumImage]:
    """The demo images that are examples of the tab: the first with three objects that do not overlap."""
    several = [entry for entry in demo_album().about_images if len(entry.phrases) >= 3]
    return [e for e in several if not any(iou(a, b) for (_, a), (_, b) in combinations(e.phrases[:3], 2))][:5]


def phrases_of(entry: AlbumImage) -> list[str]:
    """The phrases of an example."""
    return [phrase for phrase, _ in entry.phrases[:3]]


@at_both_widths
def test_ground_finds_several_phrases_at_once(page, shots: Path):
    open_tab(page, "Ground")
    if "grounding" not in SHIPPED:
        assert_tells_how_to_train(page, "grounding")
        return
    boxes_for(page, "; ".join(phrases_of(grounded()[0])))  # the answer that the tab opens with
    overlaps = []
    rows = page.locator("tr.tr-body:visible")  # fewer on a phone
    for number, entry in enumerate(grounded()[: rows.count()]):
        rows.nth(number).click()
        found = boxes_for(page, "; ".join(phrases_of(entry)))
        count = len(phrases_of(entry))
        assert len(found) == count or (count == 1 and len(found) > 1), "one box a phrase; a single one has candidates"
        overlaps += [iou(box, truth) for box, (_, truth) in zip(found, entry.phrases, strict=False)]
    # Some of its answers are wrong, as the model's are; the page must show what the model found.
    assert sum(overlap > 0.5 for overlap in overlaps) >= len(overlaps) / 3
    snap(page, shots, "ground")


def test_ground_by_a_phrase_that_is_clicked_and_a_box_whose_phrase_is_edited(page, shots: Path):
    open_tab(page, "Ground")
    if "grounding" not in SHIPPED:
        assert_tells_how_to_train(page, "grounding")
        return
    # Not the one that the tab opens with: its answer is there already, and would be taken for that to the click.
    number, entry = next((n, entry) for n, entry in enumerate(grounded()) if n and len(entry.phrases) > 1)
    page.locator("tr.tr-body:visible").nth(number).click()
    several = phrases_of(entry)
    first, *_ = boxes_for(page, "; ".join(several))
    # The box is clicked in the image, which is shown enlarged.
    image = page.locator("#ground-result img").first
    shown, (width, height) = image.bounding_box(), Image.open(demo_album().images / entry.name).size
    corner = {"x": (first[0] + 2) * shown["width"] / width, "y": (first[1] + 2) * shown["height"] / height}
    image.click(position=corner)
    wait_until(page, "values.includes(document.querySelector('#ground-edit textarea')?.value)", *several)
    page.locator("#ground-which label", has_text=several[0]).click()
    wait_until(page, "document.querySelector('#ground-edit textarea')?.value == values[0]", several[0])
    page.fill("#ground-edit textarea", "the thing at the bottom")
    page.press("#ground-edit textarea", "Enter")
    assert len(boxes_for(page, "; ".join(["the thing at the bottom", *several[1:]]))) == len(several)
    page.screenshot(path=shots / "ground_edited.png", full_page=True)

    page.locator("#ground-ready label", has_text=entry.phrases[1][0]).click()
    assert 1 <= len(boxes_for(page, entry.phrases[1][0])) <= 3
    assert page.locator("#ground-phrase textarea").input_value() == entry.phrases[1][0]
    with page.expect_download() as saved:
        page.click("#ground-json")
    (phrase,) = {each["phrase"] for each in json.loads(Path(saved.value.path()).read_text())}
    assert saved.value.suggested_filename == "ground.json" and phrase == entry.phrases[1][0]


def boxes_for(page, phrases: str) -> list[tuple[float, ...]]:
    """The boxes in the table, xyxy, once image and table show those of these phrases."""
    image = "document.querySelector('#ground-result img')"
    wait_until(page, f"{image}?.alt.endsWith(values[0]) && {image}.complete && {image}.width > 0", f": {phrases}")
    table = "document.querySelector('#ground-boxes table')?.innerText"
    wait_until(page, f"values.every(phrase => {table}.includes(phrase))", *phrases.split("; "))
    rows = [row.split("\t") for row in page.locator("#ground-boxes tbody tr").all_inner_texts()]
    assert all(0 < float(row[-3].removesuffix(" %")) <= 100 for row in rows)
    sides = [[float(side) for span in row[-2:] for side in span.split(" to ")] for row in rows]
    return [(x1, y1, x2, y2) for x1, x2, y1, y2 in sides]


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Overlap of two xyxy boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


@at_both_widths
def test_moments_open_with_an_answer_whose_peak_is_in_the_true_interval(page, shots: Path):
    open_tab(page, "Moments")
    if "moment_retrieval" not in SHIPPED:
        assert_tells_how_to_train(page, "moment_retrieval")
        return
    (_, sentence, windows), *_ = demo_album().longest_moments()
    assert page.locator("#moments-text textarea").input_value() == sentence
    line = page.locator("#moments-line svg")
    peak, length = float(line.get_attribute("data-peak")), float(line.get_attribute("data-seconds"))
    assert any(start <= peak <= end for start, end in windows)
    # What is seen says so, too: the top of the curve is above that time.
    points = [point.split(",") for point in line.locator("polyline").get_attribute("points").split()]
    top = min(points, key=lambda point: float(point[1]))
    assert float(top[0]) / 600 * length == pytest.approx(peak, abs=0.2)
    wait_until(page, "document.querySelector('#moments-line img').naturalWidth == 8 * 98 - 2")  # eight square frames
    wait_until(page, "Math.abs(document.querySelector('#moments-summary video')?.duration - 10) < 1")
    page.locator("#moments-line button").first.click()
    start, _ = (read_clock(text) for text in page.locator("#moments-line button").first.inner_text().split(" to "))
    wait_until(page, "document.querySelector('#moments-video video').currentTime >= values[0] - 0.1", start)
    snap(page, shots, "moments")


def read_clock(text: str) -> float:
    """``1:04.0`` in seconds."""
    minutes, _, seconds = text.partition(":")
    return 60 * int(minutes) + float(seconds)


@at_both_widths
def test_classify_compare_and_caption(page, client: Client, shots: Path):
    open_tab(page, "Classify")
    entry = demo_album().about_images[1]
    page.locator("button.gallery-item:visible").nth(1).click()
    names = page.locator("#classify-names textarea").input_value()
    found = client.predict(handle_file(str(demo_album().images / entry.name)), names, api_name="/classify")
    wait_for_bars(page, "classify", [each["class"] for each in found])
    snap(page, shots, "classify")
    page.fill("#classify-names textarea", "cat, ball, house")
    page.click("#classify-button")
    wait_until(page, "document.querySelectorAll('#classify-result .name').length == 3")
    assert page.locator("#classify-result .name").first.inner_text() == "ball"

    open_tab(page, "Compare")
    page.fill("#compare-text textarea", QUERY)
    page.click("#compare-button")
    answers = client.predict(QUERY, "SHERL", "zero-shot tiny", api_name="/compare")
    for side, answer in zip(("left", "right"), answers, strict=True):
        first = f"{answer['results'][0]['score']:.3f} {answer['results'][0]['picture']}"
        wait_until(page, f"document.querySelector('#compare-{side}-results img')?.alt == values[0]", first)
    assert answers[0]["results"][0]["picture"] == ITS_IMAGE
    snap(page, shots, "compare")

    open_tab(page, "Caption")
    if "captioning" not in SHIPPED:
        assert_tells_how_to_train(page, "captioning")
        first, third = (demo_album().about_images[number].captions[0] for number in (0, 2))
        assert page.locator("#caption-result .name").first.inner_text() == first
        page.locator("button.gallery-item:visible").nth(2).click()
        wait_until(page, "document.querySelector('#caption-result .name')?.innerText == values[0]", third)
        assert page.locator("#caption-result .name").count() == 3
        snap(page, shots, "caption")


@at_both_widths
def test_memory_says_at_once_what_fits(page, shots: Path):
    open_tab(page, "Memory")
    page.get_by_text("On a GPU of 8 GB this fits: SHERL, LoRA, full.").wait_for()
    widths = page.locator("#memory-result .part-1").evaluate_all("all => all.map(b => b.getBoundingClientRect().width)")
    assert len(widths) == 4 and 0 < widths[0] < 0.2 * widths[2]
    sherl, lora, full = (_pairs(page, column) for column in range(3))
    assert sherl > 5 * lora > full
    page.locator("#memory-weights label", has_text="nf4").click()
    page.get_by_text("base stored in nf4").wait_for()
    assert _pairs(page, 0) >= sherl and "not possible" in page.locator("#memory-fits tr[data-base]").first.inner_text()
    snap(page, shots, "memory")


def _pairs(page, column: int) -> int:
    """The largest batch in a column of the first row of the answer."""
    text = page.locator("#memory-fits tr[data-base=ViT-B-32] td").nth(column).inner_text()
    return int(text.removesuffix(" pairs").replace(",", ""))


def test_an_error_is_a_sentence_in_the_page(page, shots: Path, tmp_path: Path):
    (tmp_path / "fake.jpg").write_text("no image")
    page.get_by_role("tab", name="By image").click()
    # An example first: Gradio then makes the input anew for this visitor, and its limits must come along.
    page.locator("button.gallery-item:visible").first.click()
    wait_for_images(page, 12)
    page.locator("#search-image input[type=file]").set_input_files(tmp_path / "fake.jpg")
    page.click("#search-image-button")
    page.get_by_text("fake.jpg: cannot be used as an image (not an image).").wait_for()
    assert "Traceback" not in page.content()
    page.wait_for_timeout(500)  # it fades in
    wait_for_images(page, 12)  # what was found before stays in sight
    page.screenshot(path=shots / "error.png")


def test_keyboard_alone_is_enough(page):
    page.locator("#search-text textarea").focus()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    wait_for_images(page, 12)
    page.get_by_role("tab", name="Search", exact=True).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_role("tab", name="Video search", exact=True, selected=True).wait_for()


GRADIOS = {"button-name": "gallery-item"}
"""Findings in Gradio's own markup, by a class in it: its examples of one image are buttons without a name."""


def ours(rule: str, node: dict[str, str]) -> bool:
    return rule not in GRADIOS or GRADIOS[rule] not in node["html"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_tab_fits_and_is_accessible(browser, url: str, shots: Path, size: dict[str, int], scheme: str):
    """No tab is wider than the screen, and axe finds nothing serious in our own markup."""
    axe = pytest.importorskip(
        "axe_playwright_python.base", reason="needs axe-playwright-python (extra test)"
    ).AXE_SCRIPT
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("#search-text textarea")
    page.evaluate(axe)
    findings = []
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(500)
        overhang = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overhang <= 1, f"{name} is {overhang} pixels too wide"
        for rule in page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]:
            if rule["impact"] in ("serious", "critical"):
                findings += [(rule["id"], name, node["html"][:160]) for node in rule["nodes"] if ours(rule["id"], node)]
        page.screenshot(path=shots / f"{scheme}_{size['width']}_{name.split()[0].lower()}.png", full_page=True)
    page.close()
    assert findings == []
