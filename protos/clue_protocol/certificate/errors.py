"""Errors of certificates. Each message is one line and names the first thing that is wrong."""

from clue_protocol.errors import ProtocolError


class CertificateError(ProtocolError):
    """The certificate does not show what it says."""


class CertificateFormError(CertificateError):
    """The file is not a certificate, or not in its one canonical form."""
