"""Requests that were altered on the way, or signed by somebody else: refused, with a reason, and nothing is touched.

The attacker here owns the coordinator's database, and in the last cases its keys too, except those of the root.
"""

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from securesystemslib.signer import CryptoSigner

from clue_protocol.envelope import REQUEST_TYPE, peek_message, sign_message
from clue_protocol.keys import load_signing_key
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


def _signed_anew(change: Callable[[pb.ForgetRequest], None], key: str = "") -> Alter:
    """What who has the request key can say, or somebody with another key."""

    def alter(house: Installation, envelope: bytes) -> bytes:
        request = peek_message(envelope, REQUEST_TYPE, pb.ForgetRequest)
        change(request)
        path = house.home / key if key else house.config.request_key
        return sign_message(request, REQUEST_TYPE, [load_signing_key(path) if path.exists() else STRANGER])

    return alter


def _yesterday(request: pb.ForgetRequest) -> None:
    request.issued_at.CopyFrom(Timestamp(seconds=int(time.time()) - 2 * 86400))
    request.expires_at.CopyFrom(Timestamp(seconds=int(time.time()) - 86400))


def _elsewhere(request: pb.ForgetRequest) -> None:
    request.installation = "ab" * 16


def _other_model(request: pb.ForgetRequest) -> None:
    request.model_digest = "ab" * 32


def _other_epoch(request: pb.ForgetRequest) -> None:
    request.sequence += 1 << 32


STRANGER = CryptoSigner.generate_ed25519()
ATTACKS: dict[str, tuple[Alter, str, str]] = {
    "other class": (_other_class, "BAD_SIGNATURE", "signed by 0 of"),
    "no signature": (_no_signature, "BAD_SIGNATURE", "signed by 0 of"),
    "half an envelope": (_no_envelope, "BAD_ENVELOPE", "not a DSSE envelope"),
    "foreign key": (_signed_anew(lambda request: None, "no-such-key.pem"), "BAD_SIGNATURE", "signed by 0 of"),
    "the key that tells the time": (_signed_anew(lambda request: None, "timestamp-key.pem"), "WRONG_ROLE", "decide"),
    "expired": (_signed_anew(_yesterday), "EXPIRED", "expired on"),
    "another installation": (_signed_anew(_elsewhere), "WRONG_INSTALLATION", "another installation"),
    "another model": (_signed_anew(_other_model), "WRONG_MODEL", "this device has"),
    "another epoch": (_signed_anew(_other_epoch), "WRONG_EPOCH", "of epoch 1"),
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
        made[attack] = enrolled.forget("eight")
        with enrolled.ledger() as ledger:
            where = (made[attack],)
            (envelope,) = ledger.execute("SELECT envelope FROM request WHERE id = ?", where).fetchone()
            ledger.execute("UPDATE request SET envelope = ? WHERE id = ?", (alter(enrolled, envelope), *where))
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
