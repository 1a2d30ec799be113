"""Private keys of people: a file under a passphrase, or whatever securesystemslib can reach (HSM, KMS, Vault)."""

import os
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signer

from clue_protocol.files import write_new_secret
from clue_protocol.trust.errors import SignerError
from clue_protocol.trust.keys import checked_key

# OpenSSL's PKCS#8 stretches a passphrase with 2,048 rounds of PBKDF2 only, so the passphrase itself must be long.
MIN_PASSPHRASE = 16
MAX_PASSPHRASE_BYTES = 1023  # OpenSSL's limit
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"

# Asked for "passphrase" or "PIN", returns it.
Secrets = Callable[[str], str]


def create_encrypted_key(path: Path, passphrase: str) -> CryptoSigner:
    """Make an Ed25519 key and write it to ``path`` as encrypted PKCS#8 with mode 0600.

    Raises:
        SignerError: the passphrase is too short or too long, the file exists, or it cannot be written.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise SignerError(f"the passphrase must have at least {MIN_PASSPHRASE} characters: several words do")
    if len(passphrase.encode()) > MAX_PASSPHRASE_BYTES:
        raise SignerError(f"the passphrase must have at most {MAX_PASSPHRASE_BYTES} bytes")
    private = Ed25519PrivateKey.generate()
    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase.encode()))
    try:
        write_new_secret(path, data)
    except FileExistsError:
        raise SignerError(f"{path} exists already: a key is never overwritten") from None
    except OSError as error:
        raise SignerError(f"cannot write the key {path}: {error.strerror}") from None
    return CryptoSigner(private)


def load_encrypted_key(path: Path, secrets: Secrets) -> CryptoSigner:
    """Load a PKCS#8 key of any kind that securesystemslib signs with.

    Args:
        path: the file; only its owner may be able to read it.
        secrets: asked for "passphrase", once the file has been found to be in order.

    Raises:
        SignerError: missing, readable by others, not encrypted, wrong passphrase, or of another kind.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise SignerError(f"cannot read the key {path}: {error.strerror}") from None
    if mode & 0o077 and os.name == "posix":
        raise SignerError(f"the key {path} can be read by others: run 'chmod 600 {path}'")
    if not data.lstrip().startswith(_ENCRYPTED):
        raise SignerError(f"{path} is not an encrypted PKCS#8 private key in PEM")
    passphrase = secrets("passphrase").encode()
    try:
        # An empty one counts as none for the library, which then asks for one in words of its own.
        private = load_pem_private_key(data, passphrase or b"\n")
    except ValueError:
        raise SignerError(f"wrong passphrase for {path}, or the file is damaged") from None
    except (TypeError, UnsupportedAlgorithm):
        raise SignerError(f"{path} is encrypted in a way that is not supported") from None
    try:
        return CryptoSigner(private)
    except ValueError:
        raise SignerError(f"{path} holds a kind of key that is not supported") from None


def open_signer(source: str, public_key: Key | None, secrets: Secrets) -> Signer:
    """The signer at ``source``.

    Args:
        source: a path to a key file under a passphrase, or a URI of securesystemslib such as ``hsm:``, ``awskms:``,
            ``gcpkms:``, ``azurekms:``, ``hv:`` (Vault). Schemes that a program adds to ``SIGNER_FOR_URI_SCHEME`` work
            too.
        public_key: as it stands in the root. A URI needs it; a file is checked against it.
        secrets: asked for "passphrase" or "PIN".

    Raises:
        SignerError: the key cannot be used or is another one.
        PublicKeyError: ``public_key`` is not in normal form.
    """
    expected = checked_key(public_key) if public_key is not None else None
    scheme = urllib.parse.urlsplit(source).scheme
    if scheme not in SIGNER_FOR_URI_SCHEME:
        signer: Signer = load_encrypted_key(Path(source), secrets)
    elif expected is None:
        raise SignerError(f"{scheme}: needs the public key too: name the key id that the root has for it")
    else:
        try:
            signer = Signer.from_priv_key_uri(source, expected, secrets)
        except Exception as error:  # each scheme raises what its own library does
            detail = " ".join(str(error).split())[:200] or type(error).__name__
            raise SignerError(f"cannot use the key {scheme}:... : {detail}") from None
    if expected is not None and signer.public_key != expected:
        raise SignerError(f"{source} holds the key {signer.public_key.keyid[:16]}, not {expected.keyid[:16]}")
    return signer
