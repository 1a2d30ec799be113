"""Checks of the way to the coordinator: its certificate authority, and a TLS connection to the SuperLink."""

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from cryptography import x509

from clue_agent.doctor import Finding, fail, ok, warn
from clue_protocol.documents import Trust

_SOON_DAYS = 30
_TIMEOUT_SECONDS = 10.0


def certificate_authority(trust: Trust) -> Iterator[Finding]:
    """The pinned certificate authority is readable and valid today."""
    try:
        authority = x509.load_pem_x509_certificate(trust.ca_pem.encode())
    except ValueError:
        yield fail("certificate authority", "the pinned one is not a PEM certificate", _AGAIN)
        return
    now = datetime.now(UTC)
    if now < authority.not_valid_before_utc:
        # No certificate comes from the future: it is the clock.
        yield fail(
            "clock",
            f"it says {now:%Y-%m-%d}, before the fleet existed ({authority.not_valid_before_utc:%Y-%m-%d})",
            "wait for the time server, or set the clock: 'timedatectl'",
        )
        return
    yield _expiry("certificate authority", authority.not_valid_after_utc, now)


def superlink(trust: Trust) -> Iterator[Finding]:
    """TCP and TLS to the SuperLink, verified against the pinned authority."""
    host, _, port = trust.superlink.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cadata=trust.ca_pem)
    except ssl.SSLError as error:
        yield fail("superlink", f"the pinned certificate authority cannot be used: {error.reason}", _AGAIN)
        return
    started = time.monotonic()
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS) as channel,
            context.wrap_socket(channel, server_hostname=host) as secured,
        ):
            peer = secured.getpeercert() or {}
            version = secured.version()
    except ssl.SSLCertVerificationError as error:
        yield fail(
            "superlink", f"{trust.superlink} shows a certificate that does not hold: {error.verify_message}", _AGAIN
        )
        return
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield fail(
            "superlink",
            f"cannot connect to {trust.superlink}: {reason}",
            "check the network, the coordinator, and its firewall for this port",
        )
        return
    took = 1000 * (time.monotonic() - started)
    yield ok("superlink", f"{trust.superlink} answers, {version}, {took:.0f} ms")
    if "notAfter" in peer:
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)
        yield _expiry("superlink certificate", until, datetime.now(UTC))


def _expiry(check: str, until: datetime, now: datetime) -> Finding:
    days = (until - now).days
    if until <= now:
        return fail(check, f"expired on {until:%Y-%m-%d}", _AGAIN)
    if days < _SOON_DAYS:
        return warn(check, f"expires in {days} day(s), on {until:%Y-%m-%d}", _AGAIN)
    return ok(check, f"valid until {until:%Y-%m-%d}")


_AGAIN = "renew it at the coordinator, then run 'clue-agent trust' with its new answer"

OFFLINE_CHECKS = (certificate_authority,)
CHECKS = (certificate_authority, superlink)
