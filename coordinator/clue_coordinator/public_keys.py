"""Public keys in files: what ``key create`` writes, and PEM as other tools do."""

import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.signer import Key, SSlibKey

from clue_coordinator.errors import UsageError
from clue_protocol.documents import check_name
from clue_protocol.errors import ProtocolError
from clue_protocol.trust.keys import checked_key, normal_key

FORMAT = "clue-public-key/1"
_MAX_CHARACTERS = 16384


@dataclass(frozen=True)
class PublicKey:
    """A key and what its holder calls it; the name is no part of the key and proves nothing."""

    key: Key
    name: str = ""

    def to_json(self) -> str:
        """The file's text."""
        check_name("key", self.name)
        fields = {
            "format": FORMAT,
            "name": self.name,
            "keyid": self.key.keyid,
            "keytype": self.key.keytype,
            "scheme": self.key.scheme,
            "public": self.key.keyval["public"],
        }
        return json.dumps(fields, indent=2) + "\n"


def public_path(private: Path) -> Path:
    """Where the public part of a key file lies: ``alice.pub`` beside ``alice.pem``, ``alice.pub`` beside ``alice``."""
    return private.with_suffix(".pub") if private.suffix == ".pem" else private.with_name(f"{private.name}.pub")


def read_public_key(path: Path) -> PublicKey:
    """The key in ``path``; UsageError says what is wrong with it. A key in PEM is called as its file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    if "PRIVATE KEY-----" in text:
        raise UsageError(f"{path} is a private key, which nobody else may see: give {public_path(path)}")
    try:
        found = parse_public_key(text)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return found if found.name else PublicKey(found.key, path.stem[:63])


def parse_public_key(text: str) -> PublicKey:
    """The key of a file's text, JSON or PEM; UsageError otherwise."""
    if len(text) > _MAX_CHARACTERS:
        raise UsageError("the public key is too large to be one")
    try:
        if text.lstrip().startswith("-----BEGIN PUBLIC KEY-----"):
            return PublicKey(checked_key(SSlibKey.from_crypto(load_pem_public_key(text.encode()))))
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise UsageError(f"it is not a public key of format {FORMAT}")
        key = normal_key(str(data["keytype"]), str(data["scheme"]), str(data["public"]))
        if data["keyid"] != key.keyid:
            raise UsageError("the public key does not match its key id")
        return PublicKey(key, check_name("key", str(data["name"])))
    except ProtocolError as error:
        raise UsageError(str(error)) from None
    except (ValueError, KeyError, TypeError, RecursionError, UnsupportedAlgorithm):
        raise UsageError("it is no public key: give what 'clue-coordinator key create' wrote, or PEM") from None
