"""Answers that are slow: the one that was asked for last stays, whoever asked for the others."""

from __future__ import annotations

import threading

import pytest
from gradio_client import Client
from test_demo_browser import PATIENCE, browser

from helpers.demo_server import DemoServer, demo_server
from helpers.scripts import ROOT

__all__ = ["browser"]  # fixture
pytestmark = pytest.mark.slow


def test_an_answer_that_is_asked_for_later_stays(browser, monkeypatch):
    """The opening answer, then an example's, arrive only after the visitor has asked for another."""
    import gradio as gr

    monkeypatch.syspath_prepend(ROOT / "demos")
    from tabs.asking import on_asking

    begun, let_go = threading.Semaphore(0), {name: threading.Event() for name in ("opening", "example", "mine")}
    let_go["mine"].set()

    def answer(text: str) -> str:
        begun.release()
        assert let_go[text].wait(120)
        return f"the answer to {text}"

    with gr.Blocks(analytics_enabled=False) as app:
        text = gr.Textbox("opening", elem_id="text")
        button, result = gr.Button("Ask", elem_id="ask"), gr.HTML(elem_id="result")
        examples = gr.Examples(["example"], text, api_visibility="private")
        on_asking(answer, [text], [result], by=[button.click], after=[examples.load_input_event], opening=lambda: True)
    _, url, _ = app.queue(default_concurrency_limit=8).launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False
    )
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)

    def ask(words: str) -> None:
        page.fill("#text textarea", words)
        page.wait_for_timeout(200)  # the page takes a text over a moment after it was typed
        page.click("#ask")

    def assert_stays(words: str) -> None:
        page.locator("#result", has_text=words).wait_for()
        page.wait_for_timeout(500)
        assert page.locator("#result").inner_text() == f"the answer to {words}"

    try:
        page.goto(url)
        assert begun.acquire(timeout=120)
        ask("mine")
        let_go["opening"].set()
        assert_stays("mine")
        while begun.acquire(blocking=False):
            pass
        page.get_by_role("button", name="example").click()
        assert begun.acquire(timeout=120)
        ask("mine")
        let_go["example"].set()
        assert_stays("mine")
    finally:
        for event in let_go.values():
            event.set()
        page.close()
        app.close(verbose=False)


def test_what_the_opening_sets_no_request_of_a_visitor_sets(server: DemoServer):
    """In no tab, so a late opening can undo nothing; only status lines and the text of a link are set by both."""
    config = Client(server.url, verbose=False).config
    components = {each["id"]: each for each in config["components"]}
    shared = {"state", "timer"}, {"search-text", "index-status"}
    opening, asked = set(), set()
    for each in config["dependencies"]:
        events = {event for _, event in each["targets"]}
        (opening if events & {"load", "tick"} else asked).update(each["outputs"])
    both = [components[number] for number in opening & asked]
    assert opening and [c for c in both if c["type"] not in shared[0] and c["props"]["elem_id"] not in shared[1]] == []


@pytest.fixture(scope="module")
def server():
    with demo_server() as running:
        yield running
