"""Screenshots of the web demo in a real browser: every tab as it opens, at two widths, light and dark.

    python docs/screenshots.py --output build/screenshots
    python docs/screenshots.py --output build/screenshots --readme true    # also replaces the README's image

Needs Chromium and playwright (extra ``test``).
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.cli.config import run
from vlkit.cli.show import Console, track
from vlkit.errors import UserError

ROOT = Path(__file__).parent.parent
README_IMAGE = ROOT / "docs" / "results" / "demo_search.png"
TABS = ("Search", "Video search", "Ask", "Caption", "Ground", "Moments", "Classify", "Compare", "Memory", "Train")
SIZES = {"desk": (1280, 900), "phone": (390, 844)}
QUERY = "a pink star right of a cyan leaf"
SETTLE = 1500
"""Milliseconds until images have faded in."""


@dataclass
class Config:
    """Take screenshots of the web demo."""

    output: Path
    """Folder for the images."""
    readme: bool = False
    """Also replace the image in the README: a search, desktop, light."""


def main(config: Config) -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise UserError("no Chromium found; install it (Debian: apt-get install chromium)")
    config.output.mkdir(parents=True, exist_ok=True)
    with demo() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        views = [(size, scheme) for size in SIZES for scheme in ("light", "dark")]
        for size, scheme in track(views, "views", console=Console(stderr=True), transient=True):
            page = opened(browser, url, size, scheme)
            for tab in TABS:
                show_tab(page, tab)
                name = f"{tab.lower().replace(' ', '_')}_{size}_{scheme}.png"
                page.screenshot(path=config.output / name, full_page=True)
            page.close()
        if config.readme:
            page = opened(browser, f"{url}/?q={QUERY.replace(' ', '+')}", "desk", "light")
            page.locator(".shots:visible").nth(1).locator("img").first.wait_for()
            page.wait_for_timeout(SETTLE)
            page.screenshot(path=README_IMAGE, full_page=True)
    Console().print(f"{len(views) * len(TABS)} images in {config.output}")


@contextmanager
def demo() -> Iterator[str]:
    """The demo on a free port, once it has indexed its images: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "demos" / "app.py"), "--port", str(port), "--train", "true"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not any(re.search("the demo is at", line) for line in process.stdout):
            raise UserError("the demo did not start; run python demos/app.py to see why")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def opened(browser: Any, url: str, size: str, scheme: str) -> Any:
    """A page of the demo."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("#search-text textarea")
    page.wait_for_function("!document.querySelector('#index-status .progress')")
    return page


def show_tab(page: Any, name: str) -> None:
    """Click a tab and wait for its first answer; on a narrow screen it may be in the menu behind the dots."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.locator(".overflow-menu:visible > button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()
    if name == "Compare":
        page.locator("#compare-left-facts p").wait_for()
    if name == "Memory":
        page.locator("#memory-result li[data-method=full]").wait_for()
    page.wait_for_timeout(SETTLE)


if __name__ == "__main__":
    run(main, Config)
