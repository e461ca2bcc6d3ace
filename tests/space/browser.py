"""A real browser, without a window: Debian's chromium, or what a machine has of its kind."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A running browser. A machine without one fails the test: the page is only proven where it is seen."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("no browser to look at the Space with: as root, apt-get install chromium", pytrace=False)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


class Visitor:
    """Somebody who looks at the page and uses it."""

    def __init__(self, browser: "Browser", url: str, size: dict[str, int] | None = None) -> None:
        self.page: Page = browser.new_page(viewport=size or {"width": 1280, "height": 900})  # type: ignore[arg-type]
        self.hosts: set[str] = set()
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(url)
        self.page.get_by_role("button", name="Ask").wait_for()

    def upload(self, picture: Path) -> None:
        with self.page.expect_response(lambda response: "/upload" in response.url):
            self.page.locator("input[type=file]").first.set_input_files(picture)
        self.page.get_by_label("Remove Image").wait_for()

    def ask(self, question: str) -> None:
        self.page.get_by_label("Question").fill(question)
        self.page.get_by_role("button", name="Ask").click()

    def answers(self) -> tuple[str, str]:
        left, right = (self.page.get_by_label(f"{side} answer") for side in ("Left", "Right"))
        return left.input_value(), right.input_value()

    def verdict(self) -> str:
        """What the page says of the difference, once it says it."""
        shown = self.page.locator("#verdict .verdict")
        shown.wait_for(timeout=90_000)
        return shown.inner_text()

    def sides(self) -> list[str]:
        return [" ".join(text.split()) for text in self.page.locator(".block.side").all_inner_texts()]

    def figures(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".block.status").all_inner_texts()]

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()

    def width(self) -> int:
        """Pixels of what can be scrolled to sideways."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))
