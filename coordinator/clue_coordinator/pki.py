"""The installation's own certificate authority and the server certificate it issues (P-256, X.509)."""

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
from clue_protocol.files import private_folder, write_atomic, write_new_secret

_CA_YEARS, _SERVER_YEARS = 20, 5
# A Pi without a clock starts in the past; it must still be able to connect and be told the time.
_VALID_FROM = datetime(1970, 1, 1, tzinfo=UTC)


def create_pki(folder: Path, hosts: Sequence[str]) -> None:
    """Write ``ca.pem``, ``ca-key.pem``, ``server.pem`` and ``server-key.pem`` into ``folder``."""
    private_folder(folder)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CLUE installation CA")])
    now = datetime.now(UTC)
    ca = (
        _builder(ca_name, ca_name, ca_key, now + timedelta(days=365 * _CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CLUE coordinator")])
    server = (
        _builder(name, ca_name, key, now + timedelta(days=365 * _SERVER_YEARS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_new_secret(folder / "ca-key.pem", _pem(ca_key))
    write_new_secret(folder / "server-key.pem", _pem(key))
    write_atomic(folder / "ca.pem", ca.public_bytes(serialization.Encoding.PEM))
    write_atomic(folder / "server.pem", server.public_bytes(serialization.Encoding.PEM))


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
