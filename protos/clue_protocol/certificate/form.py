"""The file: what stands in ``certificate.json``, read and written, and nothing of it verified.

Hashes of inclusion proofs are shared: each stands once in ``hashes``, in the order in which the proofs first use it,
and a proof names them by number.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clue_protocol.certificate.canonical import (
    dump,
    fields,
    is_count,
    is_form,
    is_list,
    is_object,
    is_text,
    load,
    refuse,
)
from clue_protocol.certificate.enrolled import EnrolledDevice
from clue_protocol.certificate.statement import Statement
from clue_protocol.tlog import InclusionProof
from clue_protocol.tlog.proof import MAX_HASHES

FORMAT = "clue-certificate/1"
MAX_BYTES = 1 << 30
_HASH = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Place:
    """Where in the log something is: ``index`` from 0, ``hashes`` of its inclusion proof (RFC 9162, 2.1.3)."""

    index: int
    hashes: tuple[bytes, ...]

    def proof(self, size: int) -> InclusionProof:
        """For the log of ``size`` leaves."""
        return InclusionProof(self.index, size, self.hashes)


@dataclass(frozen=True)
class Item:
    """A signed envelope, byte for byte, and where it is."""

    envelope: bytes
    place: Place


@dataclass(frozen=True)
class DeviceEvidence:
    """What one device has: its enrolment, and its receipts, oldest first."""

    enrolment: EnrolledDevice
    place: Place
    receipts: tuple[Item, ...]


@dataclass(frozen=True)
class Certificate:
    """Everything in the file.

    Attributes:
        roots: envelopes of all roots, version 1 first.
        checkpoint: signed note of the log; every place is in the log of its size.
        witnesses: verifier keys of all cosignatures in the checkpoint, in their order.
        statement: what became of the request on every device.
        statement_place: where it is.
        request: the request as it went out, with all approvals.
        approvals: places of single approvals, by key id.
        patches: requests of patches that were made for this one.
        devices: one for each device of the statement, in its order.
    """

    roots: tuple[bytes, ...]
    checkpoint: str
    witnesses: tuple[str, ...]
    statement: Statement
    statement_place: Place
    request: Item
    approvals: tuple[tuple[str, Place], ...]
    patches: tuple[Item, ...]
    devices: tuple[DeviceEvidence, ...]

    def places(self) -> Iterator[Place]:
        """In the order that numbers the hashes."""
        yield self.statement_place
        yield self.request.place
        yield from (place for _, place in self.approvals)
        yield from (item.place for item in self.patches)
        for device in self.devices:
            yield device.place
            yield from (item.place for item in device.receipts)

    def to_bytes(self) -> bytes:
        """The file's content."""
        numbers: dict[bytes, int] = {}
        for place in self.places():
            for one in place.hashes:
                numbers.setdefault(one, len(numbers))

        def where(place: Place) -> dict[str, Any]:
            return {"index": place.index, "path": [numbers[one] for one in place.hashes]}

        def item(found: Item) -> dict[str, Any]:
            return {"envelope": base64.b64encode(found.envelope).decode(), **where(found.place)}

        data: dict[str, Any] = {
            "format": FORMAT,
            "roots": [base64.b64encode(envelope).decode() for envelope in self.roots],
            "checkpoint": self.checkpoint,
            "witnesses": list(self.witnesses),
            "hashes": [one.hex() for one in numbers],
            "statement": {"document": self.statement.to_dict(), **where(self.statement_place)},
            "request": item(self.request),
            "approvals": [{"key": key, **where(place)} for key, place in self.approvals],
            "patches": [item(found) for found in self.patches],
            "devices": [
                {
                    "enrolment": {"document": device.enrolment.to_dict(), **where(device.place)},
                    "receipts": [item(found) for found in device.receipts],
                }
                for device in self.devices
            ],
        }
        return dump(data) + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> "Certificate":
        """Read :meth:`to_bytes`; CertificateFormError for anything else, also for the same in another writing."""
        if len(data) > MAX_BYTES:
            refuse(f"the certificate is larger than {MAX_BYTES} bytes")
        if not data.endswith(b"\n"):
            refuse("the certificate does not end with a line end: a part is missing")
        lists = dict.fromkeys(("roots", "witnesses", "hashes", "approvals", "patches", "devices"), is_list)
        objects = dict.fromkeys(("statement", "request"), is_object)
        checks = {"format": is_form(FORMAT), "checkpoint": is_text, **lists, **objects}
        found = fields(load(data[:-1], "the certificate"), "the certificate", checks)
        read = _Reader(found["hashes"])
        if not all(isinstance(key, str) for key in found["witnesses"]):
            refuse("the witnesses are not verifier keys")
        statement, statement_place = read.document(found["statement"], "the statement")
        certificate = cls(
            roots=tuple(_bytes(text, "a root") for text in found["roots"]),
            checkpoint=found["checkpoint"],
            witnesses=tuple(found["witnesses"]),
            statement=Statement.from_dict(statement),
            statement_place=statement_place,
            request=read.item(found["request"], "the request"),
            approvals=tuple(read.approval(entry) for entry in found["approvals"]),
            patches=tuple(read.item(entry, "a patch") for entry in found["patches"]),
            devices=tuple(read.device(entry) for entry in found["devices"]),
        )
        # Spaces, order, names that stand twice, other spellings of a text, hashes that no proof uses: all shows here.
        if certificate.to_bytes() != data:
            refuse("the certificate is not in its one canonical form: it was changed, or written anew")
        return certificate


class _Reader:
    def __init__(self, hashes: list[Any]) -> None:
        if not all(isinstance(one, str) and _HASH.match(one) for one in hashes):
            refuse("a hash is not 64 hexadecimal digits in small letters")
        self._hashes = [bytes.fromhex(one) for one in hashes]

    def place(self, data: dict[str, Any]) -> Place:
        path = data["path"]
        if len(path) > MAX_HASHES or not all(is_count(number) and number < len(self._hashes) for number in path):
            refuse("a proof names a hash that is not there")
        return Place(data["index"], tuple(self._hashes[number] for number in path))

    def item(self, data: object, what: str) -> Item:
        found = fields(data, what, {"envelope": is_text, "index": is_count, "path": is_list})
        return Item(_bytes(found["envelope"], what), self.place(found))

    def document(self, data: object, what: str) -> tuple[object, Place]:
        found = fields(data, what, {"document": is_object, "index": is_count, "path": is_list})
        return found["document"], self.place(found)

    def approval(self, data: object) -> tuple[str, Place]:
        found = fields(data, "an approval", {"key": is_text, "index": is_count, "path": is_list})
        return found["key"], self.place(found)

    def device(self, data: object) -> DeviceEvidence:
        found = fields(data, "a device", {"enrolment": is_object, "receipts": is_list})
        document, place = self.document(found["enrolment"], "an enrolment")
        enrolment = EnrolledDevice.from_dict(document)
        what = f"a receipt of {enrolment.device}"
        return DeviceEvidence(enrolment, place, tuple(self.item(entry, what) for entry in found["receipts"]))


def _bytes(text: object, what: str) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except ValueError:  # also for what is not ASCII
        pass
    refuse(f"{what} is not base64")
