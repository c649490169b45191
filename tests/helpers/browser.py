"""What a visitor does in a browser, done so that a busy machine does not disturb it."""

from __future__ import annotations

from pathlib import Path

ATTEMPTS = 6


def choose_file(page, field: str, file: Path | list[Path], arrived: str | None = None) -> None:
    """Give a file, or several, to an upload field of the page and wait until the page has it.

    Gradio lays out a tab in several passes; a file that is given to a field in between goes to one that is replaced,
    and is lost. A visitor would choose it again, and so does this.

    Args:
        page: of Playwright.
        field: selector of the field.
        file: what to upload.
        arrived: selector, inside the field, of what is seen when the file is there; None: the (last) file's name.
    """
    from playwright.sync_api import TimeoutError as Late

    name = file[-1].stem if isinstance(file, list) else file.name
    seen = page.locator(field, has_text=name) if arrived is None else page.locator(f"{field} {arrived}").first
    for attempt in range(1, ATTEMPTS + 1):
        page.locator(f"{field} input[type=file]").first.set_input_files(file)
        try:
            seen.wait_for(timeout=20_000)
            return
        except Late:
            if attempt == ATTEMPTS:
                raise
