"""Makes `docs/status-page.png`: the status page of a server with a few requests.

    python docs/make_status_page.py [--output FILE] [--scheme dark] [--width 1280]

Needs playwright and a Chromium, which it looks for on the machine.
"""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlx_budget.server import running

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
BODIES: tuple[dict[str, Any], ...] = (
    {"thinking_budget": 20},
    {"thinking_budget": 60},
    {"thinking_budget": 0},
    {"thinking_budget": "many"},
    {"reasoning_effort": "low"},
    {},
)


def find_browser() -> str | None:
    """The path of a Chromium, or None if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browsing(**options: Any) -> Iterator[Any]:
    """A page in a headless browser, with options of its context."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser.new_context(**options).new_page()
        finally:
            browser.close()


def _ask(url: str, fields: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], **fields}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request).read()
    except urllib.error.HTTPError as e:
        e.close()


@click.command()
@click.option("--output", type=Path, default=Path(__file__).parent / "status-page.png")
@click.option("--scheme", default="light", show_default=True)
@click.option("--width", default=1280, show_default=True)
@click.option("--height", default=660, show_default=True)
def main(output: Path, scheme: str, width: int, height: int) -> None:
    """Serves the built-in model, asks it a few things, and takes a picture."""
    size: Any = {"width": width, "height": height}
    with running() as url, browsing(viewport=size, color_scheme=scheme) as page:
        for fields in BODIES:
            _ask(url, fields)
        page.goto(url)
        page.get_by_role("button", name="Send").click()
        page.get_by_text("closed by the").wait_for()
        page.locator("tbody tr").nth(len(BODIES)).wait_for()
        page.screenshot(path=output, full_page=True)


if __name__ == "__main__":
    main()
