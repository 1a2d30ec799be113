"""What the coordinator says of a request: the devices that were meant, all of them, and what became of each.

It carries no time, so that the same outcome is the same document and has one leaf in the log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from clue_protocol.certificate.canonical import dump, fields, is_count, is_form, is_list, is_text, refuse

_FORMAT = "clue-statement/1"
OPEN_STATES = ("AWAITING_APPROVAL", "SCHEDULED", "IN_PROGRESS")


@dataclass(frozen=True)
class DeviceState:
    """One device: its execution's state, why it did not succeed, and that in words."""

    device: str
    state: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Statement:
    """A leaf of the kind ``statement`` is of this document.

    Attributes:
        request_id: of the request.
        fleet: its fleet.
        state: of the request.
        requested_by: name of the token it was made with.
        created_at, finished_at: seconds since 1970; 0 while it is open.
        devices: every device that was meant, by name.
        roots: SHA-256 (hex) of every root's envelope, from version 1 on.
    """

    request_id: str
    fleet: str
    state: str
    requested_by: str
    created_at: int
    finished_at: int
    devices: tuple[DeviceState, ...]
    roots: tuple[str, ...]

    @property
    def is_open(self) -> bool:
        """True if devices may still answer."""
        return self.state in OPEN_STATES or not self.finished_at

    def to_dict(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "format": _FORMAT,
            **vars(self),
            "devices": [vars(device) for device in self.devices],
            "roots": list(self.roots),
        }

    def to_bytes(self) -> bytes:
        """The document, byte for byte."""
        return dump(self.to_dict())

    @classmethod
    def from_dict(cls, data: object) -> "Statement":
        """Read :meth:`to_dict`; CertificateFormError for anything else."""
        texts = dict.fromkeys(("request_id", "fleet", "state", "requested_by"), is_text)
        checks = {"created_at": is_count, "finished_at": is_count, "devices": is_list, "roots": is_list}
        found = fields(data, "the statement", {"format": is_form(_FORMAT), **texts, **checks})
        of_device = dict.fromkeys(("device", "state", "reason", "detail"), is_text)
        devices = tuple(
            DeviceState(**fields(entry, "a device of the statement", of_device)) for entry in found["devices"]
        )
        names = [entry.device for entry in devices]
        if names != sorted(set(names)):
            refuse("the statement does not name every device once, in order")
        if not all(isinstance(digest, str) for digest in found["roots"]):
            refuse("the statement's roots are not digests")
        rest = {name: found[name] for name in (*texts, "created_at", "finished_at")}
        return cls(**rest, devices=devices, roots=tuple(found["roots"]))


def root_digests(envelopes: Sequence[bytes]) -> tuple[str, ...]:
    """How a statement names roots."""
    return tuple(sha256(envelope).hexdigest() for envelope in envelopes)
