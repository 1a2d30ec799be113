"""What can be wrong with a root, a time attestation or a request: one class each, all under :class:`TrustError`.

``hold`` says what a device is to make of it: False refuses for good, True means that the same bytes may be right once
the device knows more (a newer root, the time).
"""

from clue_protocol.errors import KeyFileError, ProtocolError, SignatureError


class TrustError(ProtocolError):
    """Base of all errors of this package."""

    hold = False


# Signatures


class ThresholdError(TrustError, SignatureError):
    """Too few of the role's keys signed; no other key that is known did either. ``signed`` is how many did."""

    def __init__(self, message: str, signed: int = 0) -> None:
        super().__init__(message)
        self.signed = signed


class WrongRoleError(TrustError, SignatureError):
    """Too few of the role's keys signed, but a key did that the root gives another role or another fleet."""


class RevokedKeyError(TrustError, SignatureError):
    """Too few of the role's keys signed, but a key did that the root lists as revoked."""


class PublicKeyError(TrustError):
    """A public key is malformed, of a kind that is not accepted, or is not written in its one normal form."""


class SignerError(TrustError, KeyFileError):
    """A private key cannot be used: wrong passphrase, device not there, or what it signs does not verify."""


# Roots


class RootContentError(TrustError):
    """A root contradicts itself, such as a threshold that can never be met or a revoked key in a role."""


class RootPinError(TrustError):
    """The first root is not the one whose digest the device was given at enrolment."""


class RootInstallationError(TrustError):
    """A root, attestation or request belongs to another installation."""


class RootRollbackError(TrustError):
    """A root is older than one that the device has accepted already."""


class RootForkError(TrustError):
    """A signed root contradicts one that was accepted: same version, or another past. Root keys were misused."""


class RootGapError(TrustError):
    """A root is newer than the next one: those between are missing."""

    hold = True


class RootRevocationError(TrustError):
    """A new root drops a revocation, or lowers the epoch of a fleet."""


class RootExpiredError(TrustError):
    """The newest root that the device has is past its date: it needs a newer one before it does anything."""

    hold = True


class RootOutdatedError(TrustError):
    """A time attestation named a newer root than the device has: it must get that one first."""

    hold = True


# Time


class AttestationContentError(TrustError):
    """A time attestation lacks a field, or one is out of range."""


class AttestationReplayError(TrustError):
    """A time attestation is older than one that was accepted, by its sequence number or its time."""


class AttestationExpiredError(TrustError):
    """A time attestation is past its date by what the device knows of the time."""


class NonceError(TrustError):
    """A time attestation answers another question than the one that was asked."""


class WaitingForTimeError(TrustError):
    """The device cannot judge an expiry date yet: it should ask for a time attestation and try again."""

    hold = True


# Requests


class RequestContentError(TrustError):
    """A signed request lacks what every request must carry."""


class UnknownFleetError(TrustError):
    """The root says nothing of the fleet, so nobody may ask it to forget."""


class WrongFleetError(TrustError):
    """A request names another fleet than the device's."""


class RequestExpiredError(TrustError):
    """A request is past its date, by signed time."""


class RequestReplayError(TrustError):
    """A request's sequence number is below one that was accepted: an old request, or one out of order."""


class RequestForkError(TrustError):
    """Two different requests were signed under one sequence number."""


class RequestEpochError(TrustError):
    """A request's sequence number is of another epoch than the root has for the fleet."""


# Storage


class TrustStateError(TrustError):
    """The stored state is missing, damaged or cannot be written. It is never replaced by an empty one."""


class TrustStateRollbackError(TrustStateError):
    """The state to be written knows less than the one on the disk."""
