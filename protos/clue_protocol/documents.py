"""The two JSON documents of enrolment: what a device says of itself, and what it is told to trust.

They carry public keys, names and addresses; no secret is in either.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from securesystemslib.signer import Key

from clue_protocol.errors import DocumentError
from clue_protocol.keys import key_from_json, key_to_json

ENROLMENT_FORMAT = "clue-enrolment/1"
TRUST_FORMAT = "clue-trust/2"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_MAX_BYTES = 256 * 1024
# Of one device.
MAX_LABELS = 32
_LABEL_KEY = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?\Z")
_LABEL_VALUE = re.compile(r"[A-Za-z0-9_./:+-]{1,63}\Z")


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if it may name a fleet or a device; DocumentError says what is allowed."""
    if not _NAME.match(name):
        raise DocumentError(
            f"{kind} name {name!r} must be 1-63 letters, digits, '.', '_' or '-', not starting with a mark"
        )
    return name


def check_label(key: str, value: str) -> None:
    """DocumentError unless a device may carry the label ``key`` with ``value``; it says what is allowed."""
    if not _LABEL_KEY.match(key):
        raise DocumentError(
            f"label key {key!r} must be 1-63 small letters, digits, '.', '_' or '-', beginning and ending with a "
            "letter or digit"
        )
    if not _LABEL_VALUE.match(value):
        raise DocumentError(f"value {value!r} of label {key!r} must be 1-63 letters, digits or any of _ . / : + -")


def is_timezone(name: str) -> bool:
    """True if this machine knows the time zone ``name``."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        return False
    return True


def check_labels(labels: Mapping[str, str]) -> None:
    """:func:`check_label` for each, and there must not be too many."""
    if len(labels) > MAX_LABELS:
        raise DocumentError(f"a device has at most {MAX_LABELS} labels, got {len(labels)}")
    for key, value in labels.items():
        check_label(key, value)


@dataclass(frozen=True)
class Enrolment:
    """Made on the device by ``clue-agent init``.

    Attributes:
        device_id: name of the device.
        receipt_key: public key its receipts are signed with.
        supernode_key: public key of its Flower SuperNode, one OpenSSH line.
        classes: class names of its model.
        model_digest: digest of its model bundle.
        software_version: of the agent.
        labels: what its owner says of it, such as ``site``, and what it can tell by itself: ``timezone``, ``hw``.
            Absent in documents of before.
    """

    device_id: str
    receipt_key: Key
    supernode_key: str
    classes: tuple[str, ...]
    model_digest: str
    software_version: str
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The document's text."""
        return _dump(
            ENROLMENT_FORMAT,
            device_id=self.device_id,
            receipt_key=key_to_json(self.receipt_key),
            supernode_key=self.supernode_key,
            classes=list(self.classes),
            model_digest=self.model_digest,
            software_version=self.software_version,
            labels=dict(self.labels),
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Enrolment":
        """Parse the document; DocumentError says what is wrong."""
        data = _load(text, ENROLMENT_FORMAT)
        supernode_key = _text(data, "supernode_key")
        if not re.fullmatch(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+( \S+)?", supernode_key):
            raise DocumentError("supernode_key is not an OpenSSH public key on curve P-384")
        return cls(
            device_id=check_name("device", _text(data, "device_id")),
            receipt_key=key_from_json(data.get("receipt_key")),
            supernode_key=supernode_key,
            classes=_texts(data, "classes"),
            model_digest=_text(data, "model_digest"),
            software_version=_text(data, "software_version"),
            labels=_labels(data),
        )


@dataclass(frozen=True)
class Trust:
    """Handed to the device by the coordinator: whom it trusts, and where to connect.

    Attributes:
        fleet: the fleet this device belongs to.
        root: envelope of the root that the device pins (:mod:`clue_protocol.trust`), as the coordinator gave it.
        superlink: ``host:port`` of the Flower SuperLink.
        ca_pem: certificate authority of the SuperLink's TLS certificate.
    """

    fleet: str
    root: bytes
    superlink: str
    ca_pem: str

    def to_json(self) -> str:
        """The document's text."""
        return _dump(
            TRUST_FORMAT,
            fleet=self.fleet,
            root=self.root.decode(),
            superlink=self.superlink,
            ca_pem=self.ca_pem,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Trust":
        """Parse the document; DocumentError says what is wrong. The root is not verified here."""
        data = _load(text, TRUST_FORMAT)
        superlink = _text(data, "superlink")
        if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}", superlink):
            raise DocumentError(f"superlink must be host:port, got {superlink!r}")
        return cls(
            fleet=check_name("fleet", _text(data, "fleet")),
            root=_ascii(data, "root"),
            superlink=superlink,
            ca_pem=_text(data, "ca_pem"),
        )


def _dump(form: str, **fields: Any) -> str:
    return json.dumps({"format": form, **fields}, indent=2, sort_keys=True) + "\n"


def _load(text: str | bytes, form: str) -> dict[str, Any]:
    if len(text) > _MAX_BYTES:
        raise DocumentError(f"the document is larger than {_MAX_BYTES} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise DocumentError("the document is not valid JSON") from None
    if not isinstance(data, dict) or data.get("format") != form:
        raise DocumentError(f"the document is not of format {form!r}")
    return data


def _ascii(data: dict[str, Any], name: str) -> bytes:
    text = _text(data, name)
    if not text.isascii():
        raise DocumentError(f"{name} holds what no envelope does")
    return text.encode()


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise DocumentError(f"{name} must be text")
    return value


def _texts(data: dict[str, Any], name: str) -> tuple[str, ...]:
    value = data.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise DocumentError(f"{name} must be a list of texts")
    return tuple(value)


def _labels(data: dict[str, Any]) -> dict[str, str]:
    value = data.get("labels", {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise DocumentError("labels must be an object of texts")
    check_labels(value)
    return value


__all__ = ["MAX_LABELS", "Enrolment", "Trust", "check_label", "check_labels", "check_name", "is_timezone"]
