"""Erasure certificates: who asked for an erasure, what every device answered, and that a log shows both to everyone.

:func:`verify_certificate` needs the file and the installation's root, and neither network nor database.
"""

from clue_protocol.certificate.enrolled import EnrolledDevice
from clue_protocol.certificate.errors import CertificateError, CertificateFormError
from clue_protocol.certificate.form import Certificate, DeviceEvidence, Item, Place
from clue_protocol.certificate.statement import DeviceState, Statement
from clue_protocol.certificate.trusted import log_name
from clue_protocol.certificate.verify import VerifiedCertificate, VerifiedDevice, verify_certificate

__all__ = [
    "Certificate",
    "CertificateError",
    "CertificateFormError",
    "DeviceEvidence",
    "DeviceState",
    "EnrolledDevice",
    "Item",
    "Place",
    "Statement",
    "VerifiedCertificate",
    "VerifiedDevice",
    "log_name",
    "verify_certificate",
]
