"""The installation's own certificate authority and the server certificate it issues (P-256, X.509).

The server's key and certificate are two files, because Flower wants two, and are replaced as one: both first go into
``next.pem``, which is a whole renewal or none, and from there into their places, again after a crash.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clue_coordinator.errors import ConfigError
from clue_protocol.files import fsync_folder, private_folder, write_atomic, write_new_secret

_CA_YEARS = 20
SERVER_DAYS = 90.0
_PENDING = "next.pem"
# A Pi without a clock starts in the past; it must still be able to connect and be told the time.
_VALID_FROM = datetime(1970, 1, 1, tzinfo=UTC)


def create_pki(folder: Path, hosts: Sequence[str], server_days: float = SERVER_DAYS) -> None:
    """Write ``ca.pem``, ``ca-key.pem``, ``server.pem`` and ``server-key.pem`` into ``folder``."""
    private_folder(folder)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CLUE installation CA")])
    ca = (
        _builder(ca_name, ca_name, ca_key, datetime.now(UTC) + timedelta(days=365 * _CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key, server = _issue(ca, ca_key, hosts, datetime.now(UTC) + timedelta(days=server_days))
    write_new_secret(folder / "ca-key.pem", _pem(ca_key))
    write_new_secret(folder / "server-key.pem", key)
    write_atomic(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    write_atomic(folder / "server.pem", server)


def renew_server(folder: Path, hosts: Sequence[str], until: float) -> None:
    """Replace the server's key and certificate by ones that are good until then (s since 1970); the authority stays.

    Raises:
        ConfigError: the authority's key is not there or damaged, or the files cannot be written. Nothing was changed.
    """
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        ca_key = serialization.load_pem_private_key((folder / "ca-key.pem").read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{folder}/ca.pem or ca-key.pem is damaged") from None
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca.public_key():
        raise ConfigError(f"{folder}/ca.pem and ca-key.pem do not belong together")
    key, server = _issue(ca, ca_key, hosts, datetime.fromtimestamp(until, UTC))
    try:
        write_atomic(folder / _PENDING, key + server, 0o600)
        finish_renewal(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from None


def finish_renewal(folder: Path) -> None:
    """Put a renewal that was interrupted into its place, if there is one."""
    pending = folder / _PENDING
    if not pending.exists():
        return
    key, marker, certificate = pending.read_bytes().partition(b"-----BEGIN CERTIFICATE-----")
    write_atomic(folder / "server-key.pem", key, 0o600)
    write_atomic(folder / "server.pem", marker + certificate)
    pending.unlink()
    fsync_folder(folder)


def expiry(certificate: Path) -> float:
    """When a PEM certificate expires, in seconds since 1970."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()


def ca_digest(folder: Path) -> bytes:
    """SHA-256 of the authority's certificate in DER (32 bytes)."""
    return x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()).fingerprint(hashes.SHA256())


def server_pair(folder: Path) -> tuple[bytes, bytes] | None:
    """Key and certificate of the server in PEM; None while they do not belong together or cannot be read."""
    try:
        key, certificate = ((folder / name).read_bytes() for name in ("server-key.pem", "server.pem"))
        public = serialization.load_pem_private_key(key, None).public_key()
        same = public == x509.load_pem_x509_certificate(certificate).public_key()
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return (key, certificate) if same else None


def check_pki(folder: Path) -> None:
    """Raise ConfigError unless the server's certificate, its key and the authority are whole and belong together."""
    found = {}
    for name in ("ca.pem", "server.pem", "server-key.pem"):
        path = folder / name
        try:
            data = path.read_bytes()
            found[name] = (
                serialization.load_pem_private_key(data, None).public_key()
                if name == "server-key.pem"
                else x509.load_pem_x509_certificate(data).public_key()
            )
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            kind = "an unencrypted PEM private key" if name == "server-key.pem" else "a PEM certificate"
            raise ConfigError(f"{path} is damaged: it is not {kind}") from None
    if found["server.pem"] != found["server-key.pem"]:
        raise ConfigError(f"{folder}/server.pem and server-key.pem do not belong together")


def uncovered(folder: Path, hosts: Sequence[str]) -> list[str]:
    """Those of ``hosts`` that the server's certificate does not name: clients that connect to them will refuse it."""
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return list(hosts)
    return [host for host in hosts if _names([host])[0] not in names]


def _issue(
    ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], until: datetime
) -> tuple[bytes, bytes]:
    """A new server key and its certificate, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CLUE coordinator")])
    # No longer than the authority: what comes after it nobody can check.
    until = min(until, ca.not_valid_after_utc)
    certificate = (
        _builder(name, ca.subject, key, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys((*hosts, "localhost", "127.0.0.1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
