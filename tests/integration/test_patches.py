"""A device without images of the class is patched with what three others learnt."""

import json
import shutil
from pathlib import Path

import pytest

from integration.conftest import Digits
from integration.harness import BRIEF, Installation, succeed

DONORS = ("cam-1", "cam-2", "cam-3")


@pytest.fixture(scope="module")
def mixed(coordinator: Installation, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Three devices that share what they learn, and one that has no picture of an eight or a three."""
    for number, name in enumerate((*DONORS, "cam-4")):
        samples, holdout = list(digits.shares.values())[number % len(digits.shares)]
        if name == "cam-4":
            samples = Path(shutil.copytree(samples, tmp_path_factory.mktemp("poor") / "samples"))
            for missing in ("eight", "three"):
                shutil.rmtree(samples / missing)
        options = ("--share-updates",) if name in DONORS else ()
        coordinator.add_device(name, digits.bundle, samples, holdout, *options)
        coordinator.start_agent(name)
    coordinator.wait_online(4)
    return coordinator


@pytest.mark.timeout(600)
def test_a_device_without_images_is_patched(mixed: Installation) -> None:
    before = mixed.model("cam-4").digest
    request_id = mixed.forget("eight", "--without-samples", "aggregate", *BRIEF)
    devices = mixed.wait_completed(request_id, 400)
    assert {name: device["state"] for name, device in devices.items()} == dict.fromkeys(devices, "SUCCEEDED")
    patched = devices["cam-4"]
    assert patched["patched"]
    assert not any(devices[name]["patched"] for name in DONORS)
    assert (patched["method"], patched["forget_samples"]) == ("patch", 0)
    assert patched["receipt_verified"] is True
    assert patched["model_digest_before"] == before
    assert patched["ua_before"] > 0.9
    assert patched["ua_after"] <= 0.1
    assert patched["ra_before"] - patched["ra_after"] <= 0.05
    stored = mixed.model("cam-4")
    assert (stored.digest, stored.spec.forgotten) == (patched["model_digest_after"], ("eight",))
    history = json.loads(succeed(mixed.coordinator("history", "--request", request_id, "--json")))
    kinds = [event["kind"] for event in history]
    assert kinds.count("patch.made") == 1
    assert [e["device_id"] for e in history if e["kind"] == "execution.patched"] == ["cam-4"]


@pytest.mark.timeout(300)
def test_without_the_policy_it_is_refused(mixed: Installation) -> None:
    request_id = mixed.forget("three", "--device", "cam-4")
    device = mixed.wait_completed(request_id)["cam-4"]
    assert (device["state"], device["reason"]) == ("REJECTED", "NO_FORGET_SAMPLES")
