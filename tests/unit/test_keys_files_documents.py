"""Keys and secrets in files, one daemon per home, and the documents of enrolment."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from clue_protocol import files
from clue_protocol.documents import Enrolment, Trust, check_name
from clue_protocol.errors import AlreadyRunningError, DocumentError, KeyFileError, SocketPathError
from clue_protocol.files import HomeLock, private_folder, socket_path, write_atomic, write_new_secret
from clue_protocol.keys import create_signing_key, key_from_json, key_to_json, load_signing_key

SIGNER = CryptoSigner.generate_ed25519()
OTHER = CryptoSigner.generate_ed25519()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Keys


def test_a_key_is_made_once_and_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = create_signing_key(path)
    assert mode(path) == 0o600
    assert load_signing_key(path).public_key == made.public_key
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        create_signing_key(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o620, 0o610])
def test_a_key_that_others_may_use_is_refused(tmp_path: Path, loose: int) -> None:
    path = tmp_path / "key.pem"
    create_signing_key(path)
    path.chmod(loose)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_signing_key(path)


def test_wrong_kinds_of_key_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot read"):
        load_signing_key(tmp_path / "none.pem")
    with pytest.raises(KeyFileError, match="cannot write"):
        create_signing_key(tmp_path / "no" / "folder" / "key.pem")
    elliptic = ec.generate_private_key(ec.SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    contents = {
        "not an Ed25519": elliptic.private_bytes(pem, pkcs8, serialization.NoEncryption()),
        "not an unencrypted PEM": elliptic.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"pw")),
        "not an unencrypted": b"\x00garbage",
    }
    for index, (problem, data) in enumerate(contents.items()):
        path = tmp_path / f"{index}.pem"
        write_new_secret(path, data)
        with pytest.raises(KeyFileError, match=problem):
            load_signing_key(path)


def test_public_keys_round_trip() -> None:
    assert key_from_json(key_to_json(SIGNER.public_key)) == SIGNER.public_key


def test_a_key_under_a_foreign_key_id_is_refused() -> None:
    """Otherwise one key under two names could count as two signatures."""
    with pytest.raises(DocumentError, match="key id"):
        key_from_json(key_to_json(SIGNER.public_key) | {"keyid": OTHER.public_key.keyid})


@pytest.mark.parametrize("public", ["", "zz" * 32, "00" * 31, 7, None, [], "0" * 63])
def test_a_public_key_that_is_no_curve_point_is_refused(public: object) -> None:
    data = key_to_json(SIGNER.public_key) | {"keyval": {"public": public}}
    with pytest.raises(DocumentError):
        key_from_json(data)


# Files


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    old = os.umask(0)
    try:
        write_new_secret(path, b"one")
    finally:
        os.umask(old)
    assert mode(path) == 0o600
    with pytest.raises(FileExistsError):
        write_new_secret(path, b"two")
    assert path.read_bytes() == b"one"


def test_a_private_folder_is_made_private(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True, mode=0o755)
    assert mode(private_folder(folder)) == 0o700


def test_one_daemon_a_home(tmp_path: Path) -> None:
    first, second = HomeLock(tmp_path), HomeLock(tmp_path)
    first.acquire()
    with pytest.raises(AlreadyRunningError, match=rf"process {os.getpid()}\b"):
        second.acquire()
    first.release()
    first.release()  # twice is harmless
    second.acquire()
    second.release()


def test_the_lock_holds_across_processes_and_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from clue_protocol.files import HomeLock\n"
        "lock = HomeLock(pathlib.Path(sys.argv[1])); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        lock = HomeLock(tmp_path)
        with pytest.raises(AlreadyRunningError, match=f"process {holder.pid}"):
            lock.acquire()
        holder.kill()
        holder.wait(10)
    lock.acquire()
    lock.release()


def test_socket_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp/x")  # noqa: S108
    assert socket_path(short, "s.sock") == short / "s.sock"
    long = tmp_path / ("x" * 120)
    found = socket_path(long, "s.sock")
    try:
        assert found.name == "s.sock"
        assert len(os.fsencode(found)) <= 100
        assert mode(found.parent) == 0o700
    finally:
        found.parent.rmdir()
    long.mkdir()
    monkeypatch.setattr(files.tempfile, "tempdir", str(long))
    with pytest.raises(SocketPathError, match="TMPDIR"):
        socket_path(long, "s.sock")


# Documents


def _supernode_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


ENROLMENT = Enrolment("cam-1", SIGNER.public_key, _supernode_key(), ("bird", "cat"), "ab" * 32, "0.1.0")
TRUST = Trust("yard", b'{"payload": ""}', "[::1]:9092", "-----BEGIN CERTIFICATE-----\n")


def test_documents_round_trip() -> None:
    assert Enrolment.from_json(ENROLMENT.to_json()) == ENROLMENT
    assert Trust.from_json(TRUST.to_json().encode()) == TRUST


def test_a_document_of_the_other_kind() -> None:
    with pytest.raises(DocumentError, match="clue-trust/2"):
        Trust.from_json(ENROLMENT.to_json())
    with pytest.raises(DocumentError, match="clue-enrolment/1"):
        Enrolment.from_json(TRUST.to_json())


def test_a_document_too_large() -> None:
    with pytest.raises(DocumentError, match="larger than"):
        Trust.from_json(TRUST.to_json() + " " * 300_000)


@pytest.mark.parametrize("name", ["a", "cam-1", "A.b_c", "x" * 63])
def test_good_names(name: str) -> None:
    assert check_name("device", name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a\n", "é", "x" * 64, ".."])
def test_bad_names(name: str) -> None:
    with pytest.raises(DocumentError, match="device name"):
        check_name("device", name)


@pytest.mark.parametrize("address", ["host", "host:", ":9092", "a b:1", "host:123456", "host:1\n", "::1:90:x"])
def test_bad_addresses(address: str) -> None:
    body = json.loads(TRUST.to_json()) | {"superlink": address}
    with pytest.raises(DocumentError):
        Trust.from_json(json.dumps(body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
DOCUMENTS: list[tuple[type[Enrolment] | type[Trust], dict[str, Any]]] = [
    (Enrolment, json.loads(ENROLMENT.to_json())),
    (Trust, json.loads(TRUST.to_json())),
]


def only_document_errors(kind: type[Enrolment] | type[Trust], text: str | bytes) -> None:
    try:
        document = kind.from_json(text)
    except DocumentError:
        return
    assert kind.from_json(document.to_json()) == document


@given(st.sampled_from(DOCUMENTS), st.data())
def test_one_damaged_field(document: tuple[type[Enrolment] | type[Trust], dict[str, Any]], data: st.DataObject) -> None:
    kind, body = document
    field = data.draw(st.sampled_from(sorted(body)))
    value = data.draw(JSON | st.just(ENROLMENT.to_json()) | st.just([key_to_json(SIGNER.public_key)]))
    only_document_errors(kind, json.dumps(body | {field: value}))


@given(st.sampled_from(["keyid", "keytype", "scheme", "keyval"]), JSON)
def test_one_damaged_field_of_a_key(field: str, value: object) -> None:
    key = key_to_json(SIGNER.public_key) | {field: value}
    only_document_errors(Enrolment, json.dumps(json.loads(ENROLMENT.to_json()) | {"receipt_key": key}))


@given(st.binary(max_size=200), st.sampled_from([Enrolment, Trust]))
def test_garbage(data: bytes, kind: type[Enrolment] | type[Trust]) -> None:
    with pytest.raises(DocumentError):
        kind.from_json(data)


@given(st.data())
def test_damaged_text(data: st.DataObject) -> None:
    text = TRUST.to_json()
    position = data.draw(st.integers(0, len(text)))
    only_document_errors(Trust, text[:position] + data.draw(st.text(max_size=3)) + text[position + 1 :])
