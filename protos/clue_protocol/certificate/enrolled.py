"""Which key signs a device's receipts, as the coordinator has put it on record when the device was enrolled."""

from dataclasses import dataclass

from securesystemslib.signer import Key

from clue_protocol.certificate.canonical import dump, fields, is_count, is_form, is_object, is_text
from clue_protocol.certificate.errors import CertificateFormError
from clue_protocol.errors import DocumentError
from clue_protocol.keys import key_from_json, key_to_json

_FORMAT = "clue-enrolled-device/1"


@dataclass(frozen=True)
class EnrolledDevice:
    """A leaf of the kind ``enrolment`` is of this document.

    Attributes:
        device, fleet: names.
        receipt_key: Ed25519 public key.
        enrolled_at: seconds since 1970.
    """

    device: str
    fleet: str
    receipt_key: Key
    enrolled_at: int

    def to_dict(self) -> dict[str, object]:
        """As JSON data."""
        return {
            "format": _FORMAT,
            "device": self.device,
            "fleet": self.fleet,
            "receipt_key": key_to_json(self.receipt_key),
            "enrolled_at": self.enrolled_at,
        }

    def to_bytes(self) -> bytes:
        """The document, byte for byte."""
        return dump(self.to_dict())

    @classmethod
    def from_dict(cls, data: object) -> "EnrolledDevice":
        """Read :meth:`to_dict`; CertificateFormError for anything else."""
        checks = {"format": is_form(_FORMAT), "device": is_text, "fleet": is_text}
        found = fields(data, "an enrolment", {**checks, "receipt_key": is_object, "enrolled_at": is_count})
        try:
            device = cls(found["device"], found["fleet"], key_from_json(found["receipt_key"]), found["enrolled_at"])
        except DocumentError as error:
            raise CertificateFormError(f"the enrolment of {found['device']}: {error}") from None
        if device.to_dict() != found:
            raise CertificateFormError(f"the enrolment of {found['device']} is not in its one form")
        return device
