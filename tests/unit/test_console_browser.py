"""The console in Chromium on a ledger of a test: phones, colours, no JavaScript, and a coordinator that goes away."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from console_browser import accessible, chromium, needs_chromium, no_sideways_scrolling, picture
from console_server import ConsoleHouse, console_house
from playwright.sync_api import Browser, Page, expect
from staged_fleet import add_devices, answer_all, lease

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ConsoleHouse]:
    """40 devices of which 10 are offline; 22 have answered."""
    with console_house(tmp_path / "home", devices=0) as found:
        found.fleet.now = time.time() - 120
        add_devices(found.fleet, 40, offline=10)
        found.request_id = found.fleet.order(created_by="anna")
        given = lease(found.fleet, 30)
        found.fleet.now = time.time()
        answer_all(found.fleet, given[:22])
        yield found


def sign_in(house: ConsoleHouse, page: Page) -> None:
    page.get_by_label("Operator token").fill(house.local_token)
    page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
def test_every_page_fits_and_can_be_used(house: ConsoleHouse, browser: Browser, scheme: str, width: int) -> None:
    request = f"/requests/{house.request_id}"
    paths = ("/", "/fleets/yard?where=%3D%3D", request, "/devices/cam-6")
    viewport = {"width": width, "height": 740}
    with browser.new_context(viewport=viewport, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(house.origin)
        accessible(page)
        sign_in(house, page)
        for number, path in enumerate((*paths, "/history", "/nope")):
            page.goto(house.origin + path)
            no_sideways_scrolling(page)
            accessible(page)
            picture(page, f"{width}-{scheme}-{number}")
        # On a phone rows are cards; to a screen reader they are still a table.
        page.goto(f"{house.origin}/fleets/yard")
        table = page.get_by_role("table", name="Devices")
        expect(table.get_by_role("row")).to_have_count(41)
        expect(table.get_by_role("row").nth(1).get_by_role("cell")).to_have_count(6)
        expect(page.get_by_role("columnheader", name="Device")).to_have_attribute("aria-sort", "ascending")


def test_without_javascript_the_page_loads_itself_anew(house: ConsoleHouse, browser: Browser) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"{house.origin}/login?next=/requests/{house.request_id}")
        sign_in(house, page)
        expect(page.locator("#progress")).to_contain_text("22 of 40 devices have answered")
        answer_all(house.fleet, lease(house.fleet, 40))
        expect(page.locator("#progress")).to_contain_text("32 of 40 devices have answered", timeout=15_000)


def test_what_has_the_focus_keeps_it(house: ConsoleHouse, browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{house.origin}/login?next=/requests/{house.request_id}")
        sign_in(house, page)
        link = page.get_by_role("table", name="Devices of this request").get_by_role("link", name="cam-13")
        link.focus()
        answer_all(house.fleet, lease(house.fleet, 40))
        expect(page.locator("#progress")).to_contain_text("32 of 40 devices have answered")
        expect(link).to_be_focused()


def test_a_coordinator_that_goes_away_and_comes_back(house: ConsoleHouse, browser: Browser) -> None:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{house.origin}/login?next=/requests/{house.request_id}")
        sign_in(house, page)
        expect(page.locator("#connection")).to_be_hidden()
        house.server.close()
        expect(page.locator("#connection")).to_contain_text("does not answer")
        picture(page, "away")
        house.start()
        # Sessions end with the coordinator: the page asks who is there, and then goes on.
        expect(page.get_by_label("Operator token")).to_be_visible(timeout=15_000)
        sign_in(house, page)
        expect(page.get_by_role("heading", level=1)).to_contain_text("bird")
