"""Public keys in one normal form, so that no key can pass for two.

A signature threshold counts people by their keys. One RSA key has several key ids (one for each scheme), and one PEM
file many spellings; :func:`fingerprint` sees through both.
"""

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, Key, SSlibKey

from clue_protocol.trust.errors import PublicKeyError
from clue_protocol.v1 import trust_pb2 as pb

KEY_TYPES = ("ed25519", "ecdsa", "rsa", "ml-dsa")
MIN_RSA_BITS = 2048
_MAX_PUBLIC_LENGTH = 8192


def normal_key(keytype: str, scheme: str, public: str) -> SSlibKey:
    """The key of these three texts, under the key id that follows from them; PublicKeyError if not in normal form."""
    if keytype not in KEY_TYPES or KEY_FOR_TYPE_AND_SCHEME.get((keytype, scheme)) is not SSlibKey:
        raise PublicKeyError(f"public keys of type {keytype!r} with scheme {scheme!r} are not accepted")
    if len(public) > _MAX_PUBLIC_LENGTH:
        raise PublicKeyError(f"a public key is longer than {_MAX_PUBLIC_LENGTH} characters")
    try:
        raw = _load(keytype, public)
        key = SSlibKey.from_crypto(raw, scheme=scheme)
        default = SSlibKey.from_crypto(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise PublicKeyError(f"a public key of type {keytype!r} is malformed") from None
    if isinstance(raw, RSAPublicKey) and raw.key_size < MIN_RSA_BITS:
        raise PublicKeyError(f"an RSA key has {raw.key_size} bits, at least {MIN_RSA_BITS} are needed")
    # A curve or parameter set belongs to one scheme; only RSA leaves a choice.
    if key.keytype != keytype or (keytype != "rsa" and default.scheme != scheme):
        raise PublicKeyError(f"a public key is not one for the scheme {scheme!r}")
    if key.keyval["public"] != public:
        raise PublicKeyError("a public key is not written in its normal form")
    return key


def checked_key(key: Key) -> SSlibKey:
    """``key`` itself if it is in normal form under its own key id; PublicKeyError otherwise."""
    public = key.keyval.get("public")
    if not isinstance(public, str):
        raise PublicKeyError("a public key holds no public part")
    normal = normal_key(key.keytype, key.scheme, public)
    # Were the id free, a signature by one key could be filed under the id of another.
    if normal.keyid != key.keyid:
        raise PublicKeyError(f"the key id {key.keyid!r} is not the one that follows from its key")
    return normal


def fingerprint(key: Key) -> str:
    """SHA-256 (hex) of the SubjectPublicKeyInfo in DER: the same under every scheme and key id."""
    try:
        raw = _load(key.keytype, key.keyval["public"])
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        raise PublicKeyError(f"a public key of type {key.keytype!r} is malformed") from None
    return hashlib.sha256(raw.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def key_to_message(key: Key) -> pb.PublicKey:
    """The key as it stands in a root."""
    return pb.PublicKey(keytype=key.keytype, scheme=key.scheme, public=key.keyval["public"])


def key_from_message(message: pb.PublicKey) -> SSlibKey:
    """The key of a root; PublicKeyError if it is not one."""
    return normal_key(message.keytype, message.scheme, message.public)


def _load(keytype: str, public: str) -> PublicKeyTypes:
    if keytype == "ed25519":
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return load_pem_public_key(public.encode())
