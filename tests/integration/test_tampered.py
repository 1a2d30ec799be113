"""Requests that were altered on the way, or signed by somebody else: refused, with a reason, and nothing is touched.

The attacker here owns the coordinator's database, and in the last case the whole coordinator except the key that
the devices pinned.
"""

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from clue_protocol.envelope import REQUEST_TYPE, peek_message, sign_message
from clue_protocol.keys import create_signing_key, load_signing_key
from clue_protocol.v1 import forget_pb2 as pb
from integration.conftest import DEVICES
from integration.harness import Installation, fingerprint, succeed

Alter = Callable[[Installation, bytes], bytes]


def _other_class(_: Installation, envelope: bytes) -> bytes:
    """Another class under the old signature."""
    body = json.loads(envelope)
    request = pb.ForgetRequest.FromString(b64decode(body["payload"]))
    request.forget_class = "zero"
    body["payload"] = b64encode(request.SerializeToString(deterministic=True)).decode()
    return json.dumps(body).encode()


def _no_signature(_: Installation, envelope: bytes) -> bytes:
    return json.dumps(json.loads(envelope) | {"signatures": []}).encode()


def _no_envelope(_: Installation, envelope: bytes) -> bytes:
    return envelope[: len(envelope) // 2]


def _expired(house: Installation, envelope: bytes) -> bytes:
    """Well signed, but yesterday's."""
    request = peek_message(envelope, REQUEST_TYPE, pb.ForgetRequest)
    request.expires_at.CopyFrom(Timestamp(seconds=int(time.time()) - 86400))
    return sign_message(request, REQUEST_TYPE, [load_signing_key(house.config.request_key)])


ATTACKS: dict[str, tuple[Alter, str, str]] = {
    "other class": (_other_class, "BAD_SIGNATURE", "not signed by"),
    "no signature": (_no_signature, "BAD_SIGNATURE", "no signature"),
    "half an envelope": (_no_envelope, "BAD_ENVELOPE", "not a DSSE envelope"),
    "expired": (_expired, "EXPIRED", "expired on"),
    "foreign key": (lambda _, envelope: envelope, "BAD_SIGNATURE", "not signed by"),
}


@pytest.fixture(scope="module")
def models(enrolled: Installation) -> dict[str, dict[str, str]]:
    """What is on the devices before the first request."""
    return {name: fingerprint(enrolled.device(name) / "model") for name in DEVICES}


@pytest.fixture(scope="module")
def requests(enrolled: Installation, models: dict[str, dict[str, str]]) -> dict[str, str]:
    """One request per attack, by name: made and altered while the devices are off, then all delivered."""
    made = {}
    for attack, (alter, _, _) in ATTACKS.items():
        if attack == "foreign key":
            continue
        made[attack] = enrolled.forget("eight")
        with enrolled.ledger() as ledger:
            where = (made[attack],)
            (envelope,) = ledger.execute("SELECT envelope FROM request WHERE id = ?", where).fetchone()
            ledger.execute("UPDATE request SET envelope = ? WHERE id = ?", (alter(enrolled, envelope), *where))
    assert enrolled.stop("coordinator") == 0
    enrolled.config.request_key.unlink()
    create_signing_key(enrolled.config.request_key)
    enrolled.serve()
    made["foreign key"] = enrolled.forget("eight")
    for name in DEVICES:
        enrolled.start_agent(name)
    for request_id in made.values():
        enrolled.wait_completed(request_id)
    return made


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_every_device_refuses_and_says_why(enrolled: Installation, requests: dict[str, str], attack: str) -> None:
    _, reason, words = ATTACKS[attack]
    devices: list[dict[str, Any]] = enrolled.show(requests[attack])["devices"]
    assert [d["device_id"] for d in devices] == list(DEVICES)
    for device in devices:
        assert device["state"] == "REJECTED"
        assert device["reason"] == reason
        assert words in device["detail"]
        assert device["receipt_verified"] is True
        assert device["ua_after"] is None
    shown = succeed(enrolled.coordinator("request", "show", requests[attack]))
    assert f"{reason}: " in shown
    assert all(name in shown for name in DEVICES)


def test_no_model_was_touched(
    enrolled: Installation, requests: dict[str, str], models: dict[str, dict[str, str]]
) -> None:
    for name in DEVICES:
        assert fingerprint(enrolled.device(name) / "model") == models[name]


def test_no_worker_ever_ran(enrolled: Installation, requests: dict[str, str]) -> None:
    for name in DEVICES:
        assert not (enrolled.device(name) / "logs" / "worker.log").exists()
