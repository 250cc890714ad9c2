"""Somebody who looks at the dashboard in a browser that stands on this machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0
WIDE, NARROW = 1280, 390


def missing() -> str | None:
    """Why no browser can be driven here."""
    return None if installed() else "Chromium is not installed"


def installed() -> str | None:
    """Where the browser is."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """Without a screen."""
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        # As root, which test machines often are, Chromium has no sandbox; in containers little
        # memory is shared.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=installed(), args=options)
        yield started
        started.close()


class Visitor:
    """A browser's page, and whatever was wrong in it.

    Args:
        address: of the service.
        width: of the window, in pixels.
    """

    def __init__(self, browser: Browser, address: str, width: int = WIDE) -> None:
        self.address = address
        self.wrong: list[str] = []
        self._context = browser.new_context(viewport={"width": width, "height": 860})
        self._context.set_default_timeout(SECONDS * 1000)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("request", self._asked)
        self.page.on("response", lambda answer: self._answered(answer.status, answer.url))

    def close(self) -> None:
        self._context.close()

    def log_in(self, token: str) -> None:
        self.page.goto(f"{self.address}/login")
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_role("button", name="Log in").click()
        self.arrives("Runs")

    def goes(self, path: str, title: str) -> None:
        """To an address, and looks at the view it shows."""
        self.page.goto(self.address + path)
        self.arrives(title)

    def arrives(self, title: str) -> None:
        """The heading is there and the script has run to its end."""
        expect(self.page.get_by_role("heading", level=1, name=title, exact=True)).to_be_visible()
        self.waits()

    def waits(self) -> None:
        """Until the script has run to its end, and shows no failure."""
        page = self.page
        expect(page.get_by_test_id("stApp")).to_have_attribute(
            "data-test-script-state", "notRunning"
        )
        # Links and keys are listened to.
        expect(page.locator("body[data-following]")).to_have_count(1)
        # What the script of the view before left is stale until the browser takes it away.
        expect(page.locator("[data-stale=true]")).to_have_count(0)
        assert page.get_by_test_id("stException").count() == 0, page.inner_text("body")

    def clicks(self, name: str, within: str | None = None) -> None:
        """A link by its name, in a group of them by its label."""
        self.found(name, within).click()

    def found(self, name: str, within: str | None = None) -> Locator:
        around: Page | Locator = self.page
        if within is not None:
            around = self.page.get_by_role("group", name=within)
        return around.get_by_role("link", name=name, exact=True).first

    def tiles(self) -> list[str]:
        """The numbers on the wall's tiles, in order."""
        return [each.strip() for each in self.page.locator(".wall .tile b").all_inner_texts()]

    def pictures(self) -> Locator:
        """The images in the main part; each must have arrived and have a text in its place."""
        shown = self.page.get_by_test_id("stMain").locator("img")
        for image in shown.all():
            image.scroll_into_view_if_needed()
            image.evaluate("image => image.decode()")
            assert image.get_attribute("alt"), image.get_attribute("src")
        return shown

    @property
    def state(self) -> str:
        """What the address bar says: path and query."""
        parts = urlsplit(self.page.url)
        return f"{parts.path}?{parts.query}"

    def is_too_wide(self) -> bool:
        """Whether the page can be moved sideways."""
        return bool(self.page.evaluate("document.body.scrollWidth > innerWidth"))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        to = urlsplit(request.url)
        ours = f"{to.scheme}://{to.netloc}" == self.address
        if not ours and to.scheme not in ("data", "blob"):
            self.wrong.append(f"asked elsewhere: {request.url}")

    def _answered(self, status: int, url: str) -> None:
        if status >= 400:
            self.wrong.append(f"status {status}: {url}")
