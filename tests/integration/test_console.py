"""The web console in a real browser, on a real coordinator whose devices really forget."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from integration.conftest import DEVICES
from integration.harness import FLEET, Installation, one_line, succeed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A sandbox inside a container needs rights that tests should not have.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where screenshots go: kept where ``CLUE_SCREENSHOTS`` names a folder, for people to look at."""
    folder = Path(os.environ.get("CLUE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sign_in(fleet: Installation, context: BrowserContext) -> Page:
    """As the owner of the home does: by the link that the command prints."""
    link = succeed(fleet.coordinator("console")).strip()
    page = context.new_page()
    page.goto(link)
    expect(page.get_by_role("heading", level=1)).to_have_text("Fleets")
    return page


def no_sideways_scrolling(page: Page) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], f"{page.url} is {width} px wide"  # type: ignore[index]


def accessible(page: Page) -> None:
    """What can be told without a person: one main heading, names for all that is used, no level left out."""
    assert page.locator("h1").count() == 1, page.url
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("main").count() == 1
    levels = [int(tag[1]) for tag in page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => h.tagName)")]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), page.url
    # Chromium's own computation of names and roles.
    snapshot = page.locator("body").aria_snapshot()
    nameless = re.findall(
        r"- (?:link|button|textbox|searchbox|combobox|checkbox|progressbar|columnheader)(?::|$)", snapshot, re.M
    )
    assert not nameless, snapshot
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)), page.url
    # WCAG AA for what is written in the colours of states.
    for ratio, text in page.evaluate(_CONTRASTS):
        assert ratio >= 4.5, f"{page.url}: {text!r} has a contrast of {ratio:.2f}"


_CONTRASTS = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = channels(colour).map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [getComputedStyle(element).color, behind(element)].map(light);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


def test_a_request_is_followed_until_it_is_over(fleet: Installation, chromium: Browser, pictures: Path) -> None:
    problems: list[str] = []
    with chromium.new_context() as context:
        page = sign_in(fleet, context)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        accessible(page)
        page.get_by_role("link", name=FLEET).first.click()
        table = page.get_by_role("table", name="Devices")
        expect(table.get_by_role("rowheader")).to_have_text(list(DEVICES))
        # Filter, order: by the keyboard alone.
        page.get_by_label("Name contains").focus()
        page.keyboard.type("2")
        page.keyboard.press("Enter")
        expect(table.get_by_role("rowheader")).to_have_text([DEVICES[1]])
        page.get_by_role("link", name="Clear").click()
        table.get_by_role("columnheader", name="Device").get_by_role("link").click()
        expect(table.get_by_role("rowheader")).to_have_text(list(DEVICES[::-1]))
        expect(table.get_by_role("columnheader", name="Device")).to_have_attribute("aria-sort", "descending")

        request_id = fleet.forget("eight")
        page.goto(f"{fleet.config.console_url}requests/{request_id}")
        navigations: list[str] = []
        page.on("framenavigated", lambda frame: navigations.append(frame.url))
        expect(page.locator("#progress")).to_contain_text("0 of 2 devices have answered")
        page.screenshot(path=pictures / "request-begins.png")
        device = page.get_by_role("row").filter(has=page.get_by_role("link", name=DEVICES[0], exact=True)).first
        expect(device).to_contain_text("in progress", timeout=60_000)
        page.screenshot(path=pictures / "request-live.png")
        expect(page.locator("#progress")).to_contain_text("completed 2 of 2 devices have answered", timeout=240_000)
        # Said aloud too, and the page was never loaded anew for it.
        expect(page.locator("#announce")).to_have_text("completed: 2 of 2 devices have answered")
        assert not navigations
        for name in DEVICES:
            row = page.get_by_role("table", name="Devices of this request").get_by_role("row").filter(has_text=name)
            expect(row).to_contain_text("succeeded")
            expect(row).to_contain_text("verified")
            expect(row).to_contain_text(re.compile(r"\d+\.\d → \d+\.\d"))
        accessible(page)
        page.screenshot(path=pictures / "request-over.png", full_page=True)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Operator token")).to_be_visible()
        page.goto(fleet.config.console_url)
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert not problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(fleet: Installation, chromium: Browser, pictures: Path, scheme: str) -> None:
    refused = fleet.forget("nine", "--max-ra-drop", "0", "--max-ua", "0", "--deadline", "1h")
    with chromium.new_context(viewport=PHONE, color_scheme=scheme, java_script_enabled=True) as context:  # type: ignore[arg-type]
        page = sign_in(fleet, context)
        paths = ("", f"fleets/{FLEET}", f"requests/{refused}", f"devices/{DEVICES[0]}", "requests", "history", "nope")
        for path in paths:
            page.goto(fleet.config.console_url + path)
            no_sideways_scrolling(page)
            accessible(page)
            page.screenshot(path=pictures / f"phone-{scheme}-{path.partition('/')[0] or 'fleets'}.png", full_page=True)
    succeed(fleet.coordinator("request", "cancel", refused))


def test_without_javascript(fleet: Installation, chromium: Browser) -> None:
    with chromium.new_context(java_script_enabled=False) as context:
        page = sign_in(fleet, context)
        request_id = fleet.forget("seven")
        page.goto(f"{fleet.config.console_url}requests/{request_id}")
        expect(page.locator("#progress")).to_contain_text("of 2 devices have answered")
        assert (
            page.locator("noscript meta[http-equiv=refresh]").count() + page.locator("meta[http-equiv=refresh]").count()
        )
    succeed(fleet.coordinator("request", "cancel", request_id))


def test_when_the_coordinator_stops(fleet: Installation, chromium: Browser) -> None:
    with chromium.new_context() as context:
        page = sign_in(fleet, context)
        request_id = fleet.forget("six")
        page.goto(f"{fleet.config.console_url}requests/{request_id}")
        assert fleet.stop("coordinator") == 0
        expect(page.locator("#connection")).to_contain_text("does not answer", timeout=15_000)
        assert "is not running" in one_line(fleet.coordinator("console"), 1)
        fleet.serve()
        # Sessions end with the coordinator: the page asks who is there, and comes back to the request.
        expect(page.get_by_label("Operator token")).to_be_visible(timeout=30_000)
        page.get_by_label("Operator token").fill(fleet.config.operator_token.read_text().strip())
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("six")
    succeed(fleet.coordinator("request", "cancel", request_id))
