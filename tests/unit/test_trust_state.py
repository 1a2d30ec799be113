"""What a device remembers, on the disk; and people's keys, in files and elsewhere."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signature, Signer

from clue_protocol import files
from clue_protocol.envelope import REQUEST_TYPE
from clue_protocol.keys import create_signing_key
from clue_protocol.trust import (
    FleetMark,
    TrustState,
    add_signature,
    create_encrypted_key,
    load_encrypted_key,
    load_state,
    open_signer,
    save_state,
    unsigned,
)
from clue_protocol.trust.envelopes import read_envelope, signers
from clue_protocol.trust.errors import PublicKeyError, SignerError, TrustStateError, TrustStateRollbackError
from clue_protocol.v1 import forget_pb2 as pb

STATE = TrustState(3, b"\x01" * 32, 10**18, 7, 3, {"yard": FleetMark(2**64 - 1, b"\x02" * 32)})
PASSPHRASE = "correct horse battery"


# State


def test_a_state_is_stored_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save_state(path, STATE)
    assert load_state(path) == STATE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    save_state(path, STATE)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "older",
    [
        {"root_version": 2},
        {"root_digest": b"\x03" * 32},
        {"attested_ns": 10**18 - 1},
        {"attestation_sequence": 6},
        {"announced_root": 2},
        {"fleets": {}},
        {"fleets": {"yard": FleetMark(5, b"\x02" * 32)}},
    ],
    ids=lambda older: next(iter(older)),
)
def test_a_state_is_never_replaced_by_an_older_one(tmp_path: Path, older: dict[str, Any]) -> None:
    path = tmp_path / "state.json"
    save_state(path, STATE)
    with pytest.raises(TrustStateRollbackError, match="knows more"):
        save_state(path, replace(STATE, **older))
    assert load_state(path) == STATE


def test_time_may_go_back_with_a_newer_root_and_numbers_may_not(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save_state(path, STATE)
    newer = replace(STATE, root_version=4, root_digest=b"\x04" * 32, attested_ns=5, attestation_sequence=0)
    with pytest.raises(TrustStateRollbackError):
        save_state(path, replace(newer, fleets={}))
    save_state(path, newer)
    assert load_state(path) == newer


def test_a_full_disk_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    save_state(path, STATE)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TrustStateError, match="No space"):
        save_state(path, STATE.after_request("yard", 2**64 - 1, b"\x05" * 32))
    monkeypatch.undo()
    assert load_state(path) == STATE
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "clue-trust-state/2"},
        {"root_version": -1},
        {"root_version": "3"},
        {"root_version": True},
        {"root_version": 2**63},
        {"root_digest": "00"},
        {"root_digest": None},
        {"attested_ns": 1.5},
        {"attestation_sequence": 2**64},
        {"announced_root": None},
        {"fleets": []},
        {"fleets": {"yard": {}}},
        {"fleets": {"yard": {"sequence": 1, "digest": "zz"}}},
    ],
)
def test_a_damaged_state_stops_the_device(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(json.loads(STATE.to_json()) | changes))
    before = path.read_bytes()
    with pytest.raises(TrustStateError):
        load_state(path)
    with pytest.raises(TrustStateError):
        save_state(path, STATE)  # a damaged one is not quietly replaced
    assert path.read_bytes() == before


def test_no_state_and_too_much_of_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    with pytest.raises(TrustStateError, match="cannot read"):
        load_state(path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(TrustStateError, match="larger"):
        load_state(path)
    path.write_bytes(b"[" * 500_000)
    with pytest.raises(TrustStateError, match="damaged"):
        load_state(path)


@given(st.binary(max_size=100), st.integers(0, len(STATE.to_json()) - 1))
def test_garbage_is_a_state_error_or_a_state(data: bytes, position: int) -> None:
    text = STATE.to_json().encode()
    for damaged in (data, text[:position] + data + text[position:]):
        try:
            TrustState.from_json(damaged)
        except TrustStateError:
            continue


# People's keys


def test_a_key_under_a_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "alice.pem"
    made = create_encrypted_key(path, PASSPHRASE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    asked: list[str] = []

    def secrets(name: str) -> str:
        asked.append(name)
        return PASSPHRASE

    assert load_encrypted_key(path, secrets).public_key == made.public_key
    assert asked == ["passphrase"]
    before = path.read_bytes()
    with pytest.raises(SignerError, match="never overwritten"):
        create_encrypted_key(path, PASSPHRASE)
    assert path.read_bytes() == before


def test_wrong_passphrases_and_files(tmp_path: Path) -> None:
    path = tmp_path / "alice.pem"
    with pytest.raises(SignerError, match="at least 16"):
        create_encrypted_key(path, "short")
    with pytest.raises(SignerError, match="at most 1023"):
        create_encrypted_key(path, "é" * 512)
    assert not path.exists()
    with pytest.raises(SignerError, match="cannot write"):
        create_encrypted_key(tmp_path / "no" / "alice.pem", PASSPHRASE)
    create_encrypted_key(path, PASSPHRASE)
    for wrong in ("", "correct horse batterz", "é" * 9):
        with pytest.raises(SignerError, match="wrong passphrase"):
            load_encrypted_key(path, lambda _name, wrong=wrong: wrong)  # type: ignore[misc]
    path.chmod(0o640)
    with pytest.raises(SignerError, match="chmod 600"):
        load_encrypted_key(path, lambda _name: PASSPHRASE)
    with pytest.raises(SignerError, match="cannot read"):
        load_encrypted_key(tmp_path / "none.pem", lambda _name: PASSPHRASE)


def test_what_is_not_encrypted_or_not_supported(tmp_path: Path) -> None:
    def never(_name: str) -> str:
        raise AssertionError("nobody should be asked")

    create_signing_key(tmp_path / "plain.pem")
    with pytest.raises(SignerError, match="not an encrypted"):
        load_encrypted_key(tmp_path / "plain.pem", never)
    odd = ec.generate_private_key(ec.SECP256K1())
    data = odd.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE.encode()))
    files.write_new_secret(tmp_path / "odd.pem", data)
    with pytest.raises(SignerError, match="not supported"):
        load_encrypted_key(tmp_path / "odd.pem", lambda _name: PASSPHRASE)


class Token(Signer):
    """As a hardware token or a cloud is reached: by a URI, with a PIN, the private key out of reach."""

    inside = CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp384")
    broken = False

    def __init__(self, key: Key) -> None:
        self._key = key

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None) -> "Token":
        if secrets_handler("PIN") != "123456":
            raise RuntimeError("CKR_PIN_INCORRECT\n(0xa0)")
        return cls(public_key)

    @property
    def public_key(self) -> Key:
        return self._key

    def sign(self, payload: bytes) -> Signature:
        if self.broken:
            raise OSError("token removed")
        return Signature(self._key.keyid, self.inside.sign(payload).signature)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> type[Token]:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "token", Token)
    monkeypatch.setattr(Token, "broken", False)
    return Token


EMPTY = unsigned(pb.ForgetRequest(), REQUEST_TYPE)


def test_a_signer_by_uri(token: type[Token]) -> None:
    key = token.inside.public_key
    signer = open_signer("token:slot=1", key, lambda _name: "123456")
    data = add_signature(EMPTY, REQUEST_TYPE, signer)
    assert signers(read_envelope(data, REQUEST_TYPE), [key]) == (key,)
    with pytest.raises(SignerError, match=r"CKR_PIN_INCORRECT \(0xa0\)"):
        open_signer("token:slot=1", key, lambda _name: "0")
    with pytest.raises(SignerError, match="public key"):
        open_signer("token:slot=1", None, lambda _name: "123456")


def test_a_token_with_another_key_in_it_and_one_that_is_pulled(token: type[Token]) -> None:
    other = CryptoSigner.generate_ecdsa(scheme="ecdsa-sha2-nistp384").public_key
    signer = open_signer("token:slot=2", other, lambda _name: "123456")
    with pytest.raises(SignerError, match="does not verify"):
        add_signature(EMPTY, REQUEST_TYPE, signer)
    token.broken = True
    with pytest.raises(SignerError, match="token removed"):
        add_signature(EMPTY, REQUEST_TYPE, signer)


def test_the_library_s_own_file_scheme_and_a_plain_path(tmp_path: Path) -> None:
    plain = create_signing_key(tmp_path / "plain.pem")
    signer = open_signer(f"file2:{tmp_path}/plain.pem", plain.public_key, lambda _name: "")
    assert signer.public_key == plain.public_key
    with pytest.raises(SignerError, match="cannot use"):
        open_signer(f"file2:{tmp_path}/none.pem", plain.public_key, lambda _name: "")
    made = create_encrypted_key(tmp_path / "alice.pem", PASSPHRASE)
    assert open_signer(str(tmp_path / "alice.pem"), None, lambda _name: PASSPHRASE).public_key == made.public_key
    with pytest.raises(SignerError, match="holds the key"):
        open_signer(str(tmp_path / "alice.pem"), plain.public_key, lambda _name: PASSPHRASE)
    odd = CryptoSigner.generate_ed25519(keyid="ab").public_key
    with pytest.raises(PublicKeyError):
        open_signer(str(tmp_path / "alice.pem"), odd, lambda _name: PASSPHRASE)
