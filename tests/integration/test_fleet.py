"""The main path: an operator makes a fleet forget a class, and everything that is told of it is true."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from console_browser import accessible, chromium, needs_chromium, no_sideways_scrolling, picture
from playwright.sync_api import expect
from prometheus_client.parser import text_string_to_metric_families

from clue_protocol.v1 import operator_pb2, operator_pb2_grpc
from integration.conftest import DEVICES
from integration.harness import BRIEF, FLEET, Installation, fingerprint, one_line, succeed, wait_all_gone


@pytest.fixture(scope="module")
def before(fleet: Installation) -> dict[str, str]:
    return {name: fleet.model(name).digest for name in DEVICES}


@pytest.fixture(scope="module")
def forgotten(fleet: Installation, before: dict[str, str]) -> dict[str, Any]:
    """The result file of ``forget --wait``."""
    result = fleet.root / "result.json"
    out = succeed(
        fleet.coordinator("forget", "--class", "eight", "--fleet", FLEET, "--wait", "--json", str(result), timeout=300)
    )
    assert "COMPLETED" in out
    data: dict[str, Any] = json.loads(result.read_text())
    return data


def test_every_device_forgets_and_keeps_the_rest(forgotten: dict[str, Any]) -> None:
    assert forgotten["state"] == "COMPLETED"
    assert [d["device_id"] for d in forgotten["devices"]] == list(DEVICES)
    for device in forgotten["devices"]:
        assert device["state"] == "SUCCEEDED"
        assert device["receipt_verified"] is True
        assert device["ua_before"] > 0.9
        assert device["ua_after"] <= 0.05
        assert device["ra_before"] - device["ra_after"] <= 0.03
        assert device["latency_seconds"] >= device["unlearning_seconds"] > 0
        assert device["energy_joules"] > 0


def test_the_model_in_use_is_the_one_in_the_receipt(
    fleet: Installation, before: dict[str, str], forgotten: dict[str, Any]
) -> None:
    for device in forgotten["devices"]:
        name = device["device_id"]
        bundle = fleet.model(name)
        assert bundle.spec.forgotten == ("eight",)
        assert bundle.digest == device["model_digest_after"] != before[name] == device["model_digest_before"]


def test_metrics_tell_the_same_as_the_receipts(fleet: Installation, forgotten: dict[str, Any]) -> None:
    with urllib.request.urlopen(f"{fleet.config.metrics_url}/fleets/{FLEET}", timeout=15) as answer:  # noqa: S310
        text = answer.read().decode()
    values = {
        (sample.name, sample.labels.get("device"), sample.labels.get("when")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    for device in forgotten["devices"]:
        name = device["device_id"]
        assert values["clue_device_ua_ratio", name, "after"] == pytest.approx(device["ua_after"])
        assert values["clue_device_ra_ratio", name, "before"] == pytest.approx(device["ra_before"])
        assert values["clue_device_energy_joules", name, None] == pytest.approx(device["energy_joules"])
        assert values["clue_device_latency_seconds", name, None] == pytest.approx(device["latency_seconds"])


def test_request_and_device_commands(fleet: Installation, forgotten: dict[str, Any]) -> None:
    request_id = forgotten["request_id"]
    assert fleet.show(request_id) == forgotten
    shown = succeed(fleet.coordinator("request", "show", request_id))
    for name in DEVICES:
        assert re.search(rf"{name} +SUCCEEDED +[\d.]+ -> [\d.]+ +[\d.]+ -> [\d.]+ .*verified", shown)
    devices = json.loads(succeed(fleet.coordinator("device", "list", "--json")))
    digests = {d["device_id"]: d["model_digest_after"] for d in forgotten["devices"]}
    assert {d["device_id"]: d["model_digest"] for d in devices} == digests
    assert all(d["online"] and d["last_seen"] for d in devices)
    listed = succeed(fleet.coordinator("device", "list"))
    assert all(name in listed for name in DEVICES)
    assert request_id in succeed(fleet.coordinator("request", "list"))
    status = succeed(fleet.agent("status", "--config", str(fleet.device("pi-1") / "agent.toml")))
    assert re.search(r"forgotten +eight", status)


def test_a_repeated_request_changes_nothing(fleet: Installation, forgotten: dict[str, Any]) -> None:
    models = {name: fingerprint(fleet.model_folder(name)) for name in DEVICES}
    again = fleet.wait_completed(fleet.forget("eight"))
    assert {d["state"] for d in again.values()} == {"SUCCEEDED"}
    for name in DEVICES:
        assert again[name]["receipt_verified"] is True
        assert again[name]["model_digest_before"] == again[name]["model_digest_after"]
        assert fingerprint(fleet.model_folder(name)) == models[name]


def test_the_energy_of_the_unlearning_stays_visible_after_a_request_without_work(fleet: Installation) -> None:
    with urllib.request.urlopen(f"{fleet.config.metrics_url}/fleets/{FLEET}", timeout=15) as answer:  # noqa: S310
        text = answer.read().decode()
    assert text.count("clue_device_energy_joules{") == len(DEVICES)


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 43])
def test_operator_calls_need_the_token(fleet: Installation, token: str | None) -> None:
    credentials = grpc.ssl_channel_credentials((fleet.config.pki / "ca.pem").read_bytes())
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.secure_channel(fleet.config.operator_address, credentials) as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListDevices(operator_pb2.ListDevicesRequest(), metadata=metadata, timeout=15)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.WatchRequest(operator_pb2.GetRequestRequest(request_id="x"), metadata=metadata, timeout=15))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_operator_calls_need_tls(fleet: Installation) -> None:
    token = fleet.config.operator_token.read_text().strip()
    with grpc.insecure_channel(fleet.config.operator_address) as channel:
        stub = operator_pb2_grpc.OperatorServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListFleets(
                operator_pb2.ListFleetsRequest(), metadata=[("authorization", f"Bearer {token}")], timeout=15
            )
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_wrong_token_in_the_home_is_one_line(fleet: Installation, tmp_path: Path) -> None:
    home = tmp_path / "other"
    (home / "pki").mkdir(parents=True)
    for name in ("coordinator.toml", "pki/ca.pem"):
        (home / name).write_bytes((fleet.home / name).read_bytes())
    (home / "operator.token").write_text("wrong" * 8)
    assert "token" in one_line(fleet.coordinator("device", "list", "--home", str(home)), 1)


def test_secrets_are_for_their_owner_only(fleet: Installation) -> None:
    secrets = [fleet.config.request_key, fleet.config.operator_token, fleet.config.pki / "server-key.pem"]
    for name in DEVICES:
        secrets += [fleet.device(name) / "receipt-key.pem", fleet.device(name) / "supernode-key.pem"]
    for path in secrets:
        assert path.stat().st_mode & 0o077 == 0, path


@needs_chromium
def test_a_browser_follows_a_request_until_it_is_over(fleet: Installation) -> None:
    problems: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        # As the owner of the home signs in: by the link that the command prints.
        page.goto(succeed(fleet.coordinator("console")).strip())
        expect(page.get_by_role("heading", level=1)).to_have_text("Fleets")
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

        request_id = fleet.forget("nine", *BRIEF)
        page.goto(f"{fleet.config.console_url}requests/{request_id}")
        navigations: list[str] = []
        page.on("framenavigated", lambda frame: navigations.append(frame.url))
        expect(page.locator("#progress")).to_contain_text("0 of 2 devices have answered")
        picture(page, "request-begins")
        device = page.get_by_role("row").filter(has=page.get_by_role("link", name=DEVICES[0], exact=True)).first
        expect(device).to_contain_text("in progress", timeout=60_000)
        picture(page, "request-live")
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
        expect(page.locator("#facts")).to_contain_text(re.compile(r"Finished \(UTC\)\s*\d{4}-"))
        picture(page, "request-over")
        page.set_viewport_size({"width": 360, "height": 740})
        no_sideways_scrolling(page)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Operator token")).to_be_visible()
        page.goto(fleet.config.console_url)
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    assert not problems


def test_stopping_leaves_no_process(fleet: Installation) -> None:
    """Last in this module: it ends the fleet."""
    for name in (*DEVICES, "coordinator"):
        assert fleet.stop(name) == 0
    wait_all_gone(fleet.root)
