"""The server's certificate is renewed before it expires, and served without a restart."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import ConfigError
from clue_coordinator.pki import expiry, renew_server, server_pair

log = logging.getLogger(__name__)

_DAY = 86400.0
# A new authority means a visit to every device: a year is none too long to plan that.
CA_WARNING_SECONDS = 365 * _DAY
_WARN_EVERY_SECONDS = _DAY
_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class CertificateState:
    """``ca`` or ``server``, when it expires (s since 1970), and whether it should have been replaced by now."""

    name: str
    expires_at: float
    due: bool


def certificate_states(config: CoordinatorConfig, now: float) -> list[CertificateState]:
    """Both certificates; ``now`` in seconds since 1970."""
    ca, server = expiry(config.pki / "ca.pem"), expiry(config.pki / "server.pem")
    return [
        CertificateState("ca", ca, ca - now < CA_WARNING_SECONDS),
        CertificateState("server", server, server - now < _renewal_seconds(config)),
    ]


class Renewal:
    """Renews the server's certificate when a third of its life is left, and warns before the authority's end.

    Args:
        config: where the certificates are, and how long they live.
        renewed: called after a renewal; gRPC servers look by themselves.
        clock: seconds since 1970.
    """

    def __init__(
        self, config: CoordinatorConfig, clock: Callable[[], float], renewed: Callable[[], None] = lambda: None
    ) -> None:
        self._config = config
        self._clock = clock
        self._renewed = renewed
        self._server_expires = expiry(config.pki / "server.pem")
        self._ca_expires = expiry(config.pki / "ca.pem")
        self._retry_at = self._warn_at = 0.0

    def check(self) -> bool:
        """Do what is due, and return True if the certificate was renewed. Cheap: to be called every second."""
        now = self._clock()
        if self._ca_expires - now < CA_WARNING_SECONDS and now >= self._warn_at:
            self._warn_at = now + _WARN_EVERY_SECONDS
            log.warning("%s/ca.pem expires in %.0f days: see docs/enrolment.md", self._config.pki, self._ca_days(now))
        if self._server_expires - now >= _renewal_seconds(self._config) or now < self._retry_at:
            return False
        # As late as the authority allows: a new one would not live longer.
        if self._server_expires >= self._ca_expires:
            return False
        return self._renew(now)

    def _renew(self, now: float) -> bool:
        config = self._config
        try:
            renew_server(config.pki, config.certificate_hosts, now + config.server_certificate_days * _DAY)
        except ConfigError as error:
            self._retry_at = now + _RETRY_SECONDS
            log.error("the server's certificate cannot be renewed: %s", error)
            return False
        self._server_expires = expiry(config.pki / "server.pem")
        log.info("the server's certificate is renewed; it is good for %.1f days", (self._server_expires - now) / _DAY)
        self._renewed()
        return True

    def _ca_days(self, now: float) -> float:
        return (self._ca_expires - now) / _DAY


def server_credentials(pki: Path) -> grpc.ServerCredentials:
    """Credentials of a gRPC server that follow the files: every new connection gets the newest certificate."""
    files = (pki / "server-key.pem", pki / "server.pem")
    pair = server_pair(pki)
    if pair is None:
        raise ConfigError(f"{files[1]} and {files[0].name} do not belong together, or cannot be read")
    seen = _stamp(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = _stamp(files)
        if now == seen:
            return None
        # In the middle of a renewal the two do not match: the old ones go on for this connection.
        found = server_pair(pki)
        if found is None:
            return None
        seen = now
        return grpc.ssl_server_certificate_configuration([found])

    first = grpc.ssl_server_certificate_configuration([pair])
    # None means that nothing changed; the type stubs do not know that.
    return grpc.dynamic_ssl_server_credentials(first, fetch)  # type: ignore[arg-type]


def _stamp(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((found.st_ino, found.st_mtime_ns) for found in (path.stat() for path in files))
    except OSError:
        return ()


def _renewal_seconds(config: CoordinatorConfig) -> float:
    return config.server_certificate_days * _DAY / 3
