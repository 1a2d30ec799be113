"""The web console, asked over HTTP: who may look, what pages say, and that nobody can make them say something else."""

import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from console_server import ConsoleHouse, console_house
from staged_fleet import add_devices, answer_all, lease

from clue_coordinator import roots, tokens
from clue_coordinator.console import _live, codes
from clue_coordinator.models import Device
from clue_coordinator.roles import Role
from clue_protocol.certificate import verify_certificate
from clue_protocol.v1 import forget_pb2 as pb

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsoleHouse]:
    """120 devices of which 30 are offline; one request is at work, 60 devices have answered it."""
    with console_house(tmp_path_factory.mktemp("console") / "home", devices=0) as found:
        # Tokens are young and codes fresh by the clock of whoever makes them.
        found.fleet.now = time.time()
        add_devices(found.fleet, 120, offline=30)
        found.request_id = found.fleet.order(created_by="anna")
        answer_all(found.fleet, lease(found.fleet, 90)[:60])
        found.fleet.ledger.clock = time.time
        yield found


@pytest.fixture(scope="module")
def browser(house: ConsoleHouse) -> Iterator[httpx.Client]:
    with house.browser() as client:
        yield client


class Rows(HTMLParser):
    """Texts of the cells of the table with this label, by row."""

    def __init__(self, label: str, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._label, self._inside, self._cell = label, False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._inside = dict(attrs).get("aria-label") == self._label
        elif self._inside and tag == "tr":
            self.rows.append([])
        elif self._inside and tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        elif tag == "table":
            self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside and self._cell:
            self.rows[-1][-1] = " ".join((self.rows[-1][-1] + data).split())


def names(html: str, label: str) -> list[str]:
    return [row[0] for row in Rows(label, html).rows[1:]]


# Who may look


@pytest.mark.parametrize("path", ["/", "/fleets/yard", "/devices/cam-1", "/requests", "/history", "/requests/x"])
def test_strangers_are_asked_to_sign_in(house: ConsoleHouse, path: str) -> None:
    with house.stranger() as client:
        answer = client.get(path)
        assert answer.status_code == 303
        assert urlsplit(answer.headers["location"]).path == "/login"
        assert "cam-" not in answer.text
        # And are brought back to where they wanted to go.
        back = client.post("/login", data={"token": house.local_token, "next": path})
        assert back.headers["location"] == path


def test_events_are_for_those_who_signed_in(house: ConsoleHouse) -> None:
    with house.stranger() as client:
        assert client.get(f"/requests/{house.request_id}/events").status_code == 401


@pytest.mark.parametrize("role", list(Role))
def test_every_role_may_look(house: ConsoleHouse, role: Role) -> None:
    with house.browser(house.token(role, f"looks-{role}")) as client:
        page = client.get("/")
    assert page.status_code == 200
    assert f"looks-{role}" in page.text


@pytest.mark.parametrize("token", ["", "wrong", "x" * 600, "ü"])
def test_bad_tokens_open_nothing(house: ConsoleHouse, token: str) -> None:
    with house.stranger() as client:
        answer = client.post("/login", data={"token": token})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
        assert client.get("/").status_code == 303


def test_a_session_ends_with_its_token(house: ConsoleHouse) -> None:
    with house.browser(house.token(Role.VIEWER, "short")) as client:
        assert client.get("/").status_code == 200
        tokens.revoke_token(house.fleet.ledger, "short")
        time.sleep(1.1)
        assert client.get("/").status_code == 303


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(house: ConsoleHouse) -> None:
    with house.stranger() as client:
        answer = client.post("/login", data={"token": house.local_token})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert house.local_token.lower() not in cookie


def test_signing_out_needs_the_sessions_own_form(house: ConsoleHouse) -> None:
    with house.browser() as client:
        assert client.post("/logout", data={"form_token": "guessed"}).status_code == 403
        [form_token] = re.findall(r'name="form_token" value="([^"]+)"', client.get("/").text)
        old = dict(client.cookies)
        assert client.post("/logout", data={"form_token": form_token}).status_code == 303
        # Not only forgotten by the browser.
        assert httpx.get(house.origin, cookies=old).status_code == 303


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/\nx"])
def test_signing_in_leads_nowhere_else(house: ConsoleHouse, target: str) -> None:
    with house.stranger() as client:
        answer = client.post("/login", data={"token": house.local_token, "next": target})
    assert answer.headers["location"] == "/"


def test_one_time_codes(house: ConsoleHouse) -> None:
    now = time.time()
    code = codes.make_code(house.local_token, now)
    with house.stranger() as client:
        answer = client.get("/login", params={"code": code})
        assert answer.status_code == 303
        assert "local-admin" in client.get("/").text
    for bad in (
        code,
        codes.make_code("another token", now),
        codes.make_code(house.local_token, now - 3600),
        codes.make_code(house.local_token, now + 3600),
        code[:-4],
        "é",
        "A",
    ):
        with house.stranger() as client:
            answer = client.get("/login", params={"code": bad})
            assert answer.status_code == 403, bad
            assert "clue-coordinator console" in answer.text


def test_codes_of_an_earlier_life_are_void() -> None:
    now = 1000.0
    code = codes.make_code("secret", now)
    assert codes.Codes(lambda: now).redeem(code, "secret")
    now = 1001.0
    assert not codes.Codes(lambda: now).redeem(code, "secret")


# Other sites


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9465", "127.0.0.1.evil.example", "", "a@127.0.0.1"])
def test_other_host_names_are_refused(house: ConsoleHouse, browser: httpx.Client, host: str) -> None:
    answer = browser.get("/", headers={"Host": host})
    assert answer.status_code in (400, 421)
    assert "yard" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:9465"])
def test_tunnels_with_another_port_are_not(browser: httpx.Client, host: str) -> None:
    assert browser.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", ""])
def test_forms_of_other_sites_are_refused(house: ConsoleHouse, origin: str) -> None:
    with httpx.Client(base_url=house.origin) as client:
        given = {"Origin": origin} if origin else {}
        answer = client.post("/login", data={"token": house.local_token}, headers=given)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/fleets/yard", "/requests", "/devices/cam-1"])
def test_nothing_can_be_changed(browser: httpx.Client, method: str, path: str) -> None:
    assert browser.request(method, path).status_code == 405


@pytest.mark.parametrize("path", ["/", "/login", "/nope", "/static/console.css", "/static/../console.css"])
def test_headers_are_on_everything(browser: httpx.Client, path: str) -> None:
    headers = browser.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "server" not in headers


def test_pages_load_nothing_inline_and_nothing_from_elsewhere(house: ConsoleHouse, browser: httpx.Client) -> None:
    for path in ("/", "/fleets/yard", f"/requests/{house.request_id}", "/devices/cam-6", "/history", "/nope"):
        html = browser.get(path).text
        assert not re.findall(r"<style|\sstyle=|<script(?! src=\"/static/)|\son\w+=", html), path
        assert all(url.startswith(("/", "?", "#")) for url in re.findall(r'(?:href|src|action)="([^"]*)"', html)), path


def test_what_devices_and_people_write_is_text(tmp_path: Path) -> None:
    with console_house(tmp_path / "home", devices=2) as house:
        request_id = house.fleet.order(created_by=EVIL)
        [assignment] = house.fleet.lease(0).values()
        house.fleet.answer(assignment, outcome=pb.OUTCOME_FAILED, reason=pb.REASON_POLICY_NOT_MET, detail=EVIL)
        with house.fleet.ledger.write() as session:
            device = session.query(Device).filter_by(device_id="cam-0").one()
            device.software_version, device.classes, device.labels = EVIL[:64], [EVIL], {"site": EVIL}
        with house.browser() as client:
            paths = ("/", "/fleets/yard", f"/requests/{request_id}", "/devices/cam-0", "/requests", "/history")
            queries = (f"/fleets/yard?q={EVIL}", f"/fleets/yard?where={EVIL}", f"/history?device={EVIL}", f"/{EVIL}")
            pages = [client.get(path).text for path in (*paths, *queries, f"/login?next=/{EVIL}")]
            seen = sum("&lt;script&gt;" in page for page in pages)
    assert seen >= 8
    for page in pages:
        assert "<script>alert" not in page
        assert "<img" not in page


# What pages say


def test_fleets(house: ConsoleHouse, browser: httpx.Client) -> None:
    html = browser.get("/").text
    row = re.search(r'href="/fleets/yard">yard</a>.*?</tr>', html, re.DOTALL)
    assert row is not None
    assert ">120<" in row[0]
    assert ">90<" in row[0]
    assert "anna" in html


def test_devices_are_cut_ordered_and_filtered_by_the_database(browser: httpx.Client) -> None:
    def shown(query: str) -> list[str]:
        return names(browser.get(f"/fleets/yard{query}").text, "Devices")

    everything = sorted(f"cam-{number}" for number in range(120))
    assert shown("") == everything[:50]
    assert shown("?page=3") == everything[100:]
    assert shown("?page=99") == everything[100:]
    assert shown("?order=-device") == everything[::-1][:50]
    assert shown("?q=AM-11") == [name for name in everything if "am-11" in name]
    assert shown("?q=%25") == shown("?q=_") == []
    assert len(shown("?presence=offline")) == 30
    assert shown("?order=online")[:30] == shown("?presence=offline")
    paris = [name for name in everything if int(name[4:]) % 3 == 0]
    assert shown("?where=site%3Dparis,hw%3Dpi4&order=-device") == paris[::-1]
    assert shown("?page=x&order=drop+table&presence=no") == everything[:50]
    assert shown("?page=-1") == shown(f"?page={'9' * 30}") == everything[:50]


def test_a_filter_that_cannot_be_read_says_so(browser: httpx.Client) -> None:
    html = browser.get("/fleets/yard?where=%3D%3D").text
    assert 'role="alert"' in html
    assert "conditions are key=value" in html


def test_a_request(house: ConsoleHouse, browser: httpx.Client) -> None:
    path = f"/requests/{house.request_id}"
    html = browser.get(path).text
    assert "60 of 120 devices have answered" in html
    assert "POLICY_NOT_MET" in html
    assert "UA after is 31.0 %" in html
    failed = browser.get(f"{path}?state=FAILED&reason=POLICY_NOT_MET").text
    rows = Rows("Devices of this request", failed).rows[1:]
    assert [row[0] for row in rows] == sorted(f"cam-{n}" for n in range(60) if n % 13 == 12)
    assert all("90.0 → 10.0" in row for row in rows)
    worst = Rows("Devices of this request", browser.get(f"{path}?order=-loss").text).rows[1]
    assert "100.0 → 98.0" in worst
    assert "verified" in worst


def test_a_device_and_who_acted(house: ConsoleHouse, browser: httpx.Client) -> None:
    html = browser.get("/devices/cam-6").text
    assert "NO_FORGET_SAMPLES" in html
    assert f"/requests/{house.request_id}" in html
    history = browser.get(f"/history?request={house.request_id[:8]}").text
    assert ">device<" in history
    token = re.search(r'rel="next" href="([^"]+)"', history)
    assert token is not None
    older = browser.get(f"/history{token[1].replace('&amp;', '&')}").text
    assert older != history
    assert "cam-" in older


@pytest.mark.parametrize("path", ["/fleets/none", "/devices/none", "/requests/none-such", "/nope"])
def test_what_is_not_there(browser: httpx.Client, path: str) -> None:
    answer = browser.get(path)
    assert answer.status_code == 404
    assert "there is no" in answer.text
    assert "<nav" in answer.text


def test_a_page_token_that_is_none(browser: httpx.Client) -> None:
    for path in ("/requests?from=x", "/history?from=x"):
        answer = browser.get(path)
        assert answer.status_code == 400
        assert "begin at the first page" in answer.text


def test_an_installation_without_anything(tmp_path: Path) -> None:
    with console_house(tmp_path / "home", devices=0) as house, house.browser() as client:
        assert "Nothing was asked to be forgotten yet" in client.get("/").text
        assert "No device is enrolled in yard yet" in client.get("/fleets/yard").text


def test_events_tell_of_changes_and_of_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(_live, "_PAUSE_SECONDS", 0.0)
    with console_house(tmp_path / "home", devices=2) as house, house.browser() as client:
        request_id = house.fleet.order()
        given = lease(house.fleet, 2)
        with client.stream("GET", f"/requests/{request_id}/events", timeout=20) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            told = (line for line in stream.iter_lines() if line.startswith("event: "))
            assert next(told) == "event: changed"
            house.fleet.answer(given[0])
            assert next(told) == "event: changed"
            house.fleet.answer(given[1])
            assert list(told) == ["event: finished"]
        html = client.get(f"/requests/{request_id}").text
        assert "2 of 2 devices have answered" in html
        assert "console.js" not in html


def test_tls_where_others_can_reach_it(tmp_path: Path) -> None:
    with console_house(tmp_path / "home", listen="0.0.0.0") as house:  # noqa: S104
        assert house.origin.startswith("https://")
        with house.stranger() as client:
            answer = client.post("/login", data={"token": house.local_token})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith("__Host-")
            assert "secure" in cookie.lower()
            assert client.get("/").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(house.origin.replace("https", "http"))


def test_the_certificate_of_a_closed_request(tmp_path: Path) -> None:
    with console_house(tmp_path / "home") as house, house.browser(house.token(Role.VIEWER)) as browser:
        request_id = house.fleet.order()
        assert "Erasure certificate" not in browser.get(f"/requests/{request_id}").text
        early = browser.get(f"/requests/{request_id}/certificate.json")
        assert early.status_code == 409
        assert "is open" in early.text
        house.fleet.lease(0)
        house.fleet.report(request_id)
        page = browser.get(f"/requests/{request_id}").text
        for form in ("json", "html", "pdf"):
            assert f"/requests/{request_id}/certificate.{form}" in page
        found = browser.get(f"/requests/{request_id}/certificate.json")
        assert found.headers["Content-Disposition"] == f'attachment; filename="certificate-{request_id[:8]}.json"'
        with house.fleet.ledger.read() as session:
            verified = verify_certificate(found.content, [roots.latest(session).envelope])
        assert verified.erased == 1
        assert "cam-0" in browser.get(f"/requests/{request_id}/certificate.html").text
        assert browser.get(f"/requests/{request_id}/certificate.pdf").content.startswith(b"%PDF-")
        assert browser.get(f"/requests/{request_id}/certificate.exe").status_code == 404
        assert browser.get("/requests/none/certificate.json").status_code == 404
        with house.stranger() as stranger:
            assert stranger.get(f"/requests/{request_id}/certificate.json").status_code == 303
