"""The watched folder: sealed first, removed afterwards, and never a step outside of it."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clue_agent import inbox as inbox_module
from clue_agent.errors import VaultError
from clue_agent.inbox import Inbox, ScanResult, erase_originals
from clue_agent.retention import PARTS, VaultLimits
from clue_agent.sealed import KeyRing
from clue_agent.vault import Outcome, Vault

CLASSES = ["bird", "Zoë", "cat"]


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "_SETTLE_SECONDS", -3600.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in CLASSES:
        (tmp_path / "inbox" / name).mkdir(parents=True)
    return tmp_path / "inbox"


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault", KeyRing(tmp_path / "keys"), VaultLimits(max_per_class=100))


@pytest.fixture
def inbox(folder: Path, vault: Vault) -> Inbox:
    return Inbox(folder, vault, keep_originals=False, allowed=lambda: CLASSES)


def stored(vault: Vault, name: str) -> list[bytes]:
    return sorted(vault.read(item) for part in PARTS for item in vault.items(name, part))


def test_images_move_into_the_vault(folder: Path, inbox: Inbox, vault: Vault) -> None:
    (folder / "bird" / "1.png").write_bytes(picture(1))
    (folder / "bird" / "2.JPG").write_bytes(picture(2, "JPEG"))
    (folder / "bird" / "copy.png").write_bytes(picture(1))
    (folder / "Zoë" / "3.jpeg").write_bytes(picture(3, "JPEG"))
    assert inbox.scan() == ScanResult(taken=3, duplicates=1)
    assert stored(vault, "bird") == sorted([picture(1), picture(2, "JPEG")])
    assert stored(vault, "Zoë") == [picture(3, "JPEG")]
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert inbox.scan() == ScanResult()


def test_a_folder_named_with_decomposed_accents_is_the_same_class(folder: Path, inbox: Inbox, vault: Vault) -> None:
    (folder / "Zoe\u0308").mkdir()
    (folder / "Zoe\u0308" / "1.png").write_bytes(picture(1))
    assert inbox.scan().taken == 1
    assert stored(vault, "Zoë") == [picture(1)]
    (folder / "Zoe\u0308" / "1.png").write_bytes(picture(1))
    assert erase_originals(folder, "Zoë") == 1


def test_the_original_goes_only_when_the_sample_is_safe(
    folder: Path, inbox: Inbox, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bird" / "1.png").write_bytes(picture(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clue_agent.vault.seal", full)
        with pytest.raises(VaultError, match="No space left"):
            inbox.scan()
    assert (folder / "bird" / "1.png").read_bytes() == picture(1)
    assert inbox.scan().taken == 1


def test_originals_are_kept_and_not_read_again(folder: Path, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(folder, vault, keep_originals=True, allowed=lambda: CLASSES)
    for seed in range(3):
        (folder / "bird" / f"{seed}.png").write_bytes(picture(seed))
    assert inbox.scan().taken == 3
    reads: list[str] = []
    real = inbox_module._read
    monkeypatch.setattr(inbox_module, "_read", lambda name, *rest: (reads.append(name), real(name, *rest))[1])
    assert inbox.scan() == ScanResult()
    assert reads == []
    # One that is written anew is another image.
    (folder / "bird" / "1.png").write_bytes(picture(9))
    assert inbox.scan() == ScanResult(taken=1)
    assert reads == ["1.png"]
    # The next process finds out by reading them once.
    again = Inbox(folder, vault, keep_originals=True, allowed=lambda: CLASSES)
    assert again.scan() == ScanResult(duplicates=3)
    assert len(list(folder.rglob("*.png"))) == 3


def test_a_file_that_is_being_written_waits(folder: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "_SETTLE_SECONDS", 60)
    path = folder / "bird" / "1.png"
    path.write_bytes(picture(1)[:50])
    assert inbox.scan() == ScanResult(waiting=1)
    path.write_bytes(picture(1))
    assert inbox.scan() == ScanResult(waiting=1)
    time.sleep(0.25)
    monkeypatch.setattr(inbox_module, "_SETTLE_SECONDS", 0.2)
    assert inbox.scan() == ScanResult(taken=1)


def test_a_clock_that_jumped_back_does_not_hold_a_file_for_ever(
    folder: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "_SETTLE_SECONDS", 60)
    path = folder / "bird" / "1.png"
    path.write_bytes(picture(1))
    os.utime(path, (time.time() + 10**6,) * 2)
    assert inbox.scan().waiting == 1
    time.sleep(0.25)
    monkeypatch.setattr(inbox_module, "_SETTLE_SECONDS", 0.2)
    assert inbox.scan().taken == 1


def test_what_is_refused_stays_and_is_said_once(folder: Path, inbox: Inbox, vault: Vault) -> None:
    bad = {
        folder / "bird" / "bad.png": b"no image",
        folder / "bird" / "cut.jpg": picture(1, "JPEG")[:-200],
        folder / "bird" / "photo.heic": b"x",
        folder / "stray.png": picture(1),
    }
    for path, data in bad.items():
        path.write_bytes(data)
    (folder / "dog").mkdir()
    (folder / "dog" / "1.png").write_bytes(picture(1))
    (folder / "empty and unknown").mkdir()
    (folder / "bird" / ".hidden.png").write_bytes(picture(1))
    result = inbox.scan()
    reasons = dict(result.refused)
    assert set(reasons) == {*bad, folder / "dog"}
    assert "not a PNG or JPEG" in reasons[folder / "bird" / "bad.png"]
    assert "not a class of the model" in reasons[folder / "dog"]
    assert "outside the folder of a class" in reasons[folder / "stray.png"]
    assert result.taken == 0
    assert inbox.scan() == ScanResult()
    assert all(path.exists() for path in bad)
    # Put right, it is taken; gone and back, it is said again.
    (folder / "bird" / "bad.png").write_bytes(picture(5))
    (folder / "stray.png").unlink()
    assert inbox.scan() == ScanResult(taken=1)
    (folder / "stray.png").touch()
    assert [path for path, _ in inbox.scan().refused] == [folder / "stray.png"]
    assert vault.classes() == ["bird"]


def test_a_class_that_is_forgotten_is_left(folder: Path, vault: Vault) -> None:
    allowed = list(CLASSES)
    inbox = Inbox(folder, vault, keep_originals=False, allowed=lambda: allowed)
    (folder / "bird" / "1.png").write_bytes(picture(1))
    allowed.remove("bird")
    assert [path for path, _ in inbox.scan().refused] == [folder / "bird"]
    assert inbox.scan() == ScanResult()
    assert (folder / "bird" / "1.png").exists()
    allowed.append("bird")
    assert inbox.scan() == ScanResult(taken=1)


def test_a_class_forgotten_during_the_scan_is_left(folder: Path, vault: Vault) -> None:
    answers = iter([CLASSES])
    inbox = Inbox(folder, vault, keep_originals=False, allowed=lambda: next(answers, ["cat"]))
    (folder / "bird" / "1.png").write_bytes(picture(1))
    assert inbox.scan() == ScanResult()
    assert [path for path, _ in inbox.scan().refused] == [folder / "bird"]
    assert vault.classes() == []


def test_no_symbolic_link_is_followed(folder: Path, inbox: Inbox, vault: Vault, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture(1))
    (folder / "bird" / "link.png").symlink_to(outside / "secret.png")
    (folder / "cat").rmdir()
    (folder / "cat").symlink_to(outside)
    (folder / "bird" / "sub.png").mkdir()
    os.mkfifo(folder / "bird" / "pipe.png")
    result = inbox.scan()
    assert result.taken == 0
    assert {path.name for path, _ in result.refused} == {"link.png", "cat", "sub.png", "pipe.png"}
    assert (outside / "secret.png").exists()
    assert vault.classes() == []


def test_the_inbox_itself_may_be_a_link_or_missing_or_no_folder(folder: Path, vault: Vault, tmp_path: Path) -> None:
    (folder / "bird" / "1.png").write_bytes(picture(1))
    link = tmp_path / "link"
    inbox = Inbox(link, vault, keep_originals=False, allowed=lambda: CLASSES)
    assert inbox.scan() == ScanResult()
    link.symlink_to(folder)
    assert inbox.scan().taken == 1
    link.unlink()
    link.write_text("a file")
    assert [path for path, _ in inbox.scan().refused] == [link]
    assert inbox.scan() == ScanResult()


def test_a_file_swapped_for_a_link_between_looking_and_reading(
    folder: Path, inbox: Inbox, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, secret = folder / "bird" / "1.png", tmp_path / "secret.png"
    path.write_bytes(picture(1))
    secret.write_bytes(picture(2))
    real = inbox_module._read

    def swap(*args: object) -> object:
        path.unlink()
        path.symlink_to(secret)
        return real(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(inbox_module, "_read", swap)
        assert inbox.scan() == ScanResult(waiting=1)
    assert vault.classes() == []
    assert secret.exists()


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_file_changed_while_it_is_sealed(
    folder: Path, inbox: Inbox, vault: Vault, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = folder / "bird" / "1.png"
    path.write_bytes(picture(1))
    real = vault.add

    def add(*args: object, **kwargs: object) -> Outcome:
        path.unlink()
        if change == "replaced":
            path.write_bytes(picture(2) + bytes(100))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(vault, "add", add)
        assert inbox.scan() == ScanResult(taken=1)
    # The new file was never read, so it must not have been removed.
    assert inbox.scan() == ScanResult(taken=int(change == "replaced"))
    assert not path.exists()


def test_what_cannot_be_removed_is_said_once(folder: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bird" / "1.png"
    path.write_bytes(picture(1))

    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(inbox_module.os, "unlink", read_only)
        result = inbox.scan()
        assert result.taken == 1
        assert "cannot be removed here: Permission denied" in result.refused[0][1]
        assert inbox.scan() == ScanResult()


def test_a_full_class_waits_while_a_job_reads(folder: Path, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault", KeyRing(tmp_path / "keys"), VaultLimits(max_per_class=10, holdout_share=0))
    inbox = Inbox(folder, vault, keep_originals=False, allowed=lambda: CLASSES)
    for seed in range(200):
        (folder / "bird" / f"{seed}.png").write_bytes(picture(seed))
    with vault.hold():
        result = inbox.scan()
        assert result.taken == 10
        assert result.waiting > 0
        assert result.waiting + result.not_kept == 190
        assert len(list((folder / "bird").iterdir())) == result.waiting
    inbox.scan()
    assert not list((folder / "bird").iterdir())
    assert vault.count("bird", "forget") == 10


def test_a_scan_can_be_stopped(folder: Path, inbox: Inbox) -> None:
    for seed in range(5):
        (folder / "bird" / f"{seed}.png").write_bytes(picture(seed))
    answers = iter([False, False])
    assert inbox.scan(stop=lambda: next(answers, True)).taken == 2
    assert inbox.scan().taken == 3


# Originals


def test_originals_of_one_class_are_erased(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.png").touch()
    for name in ("1.png", ".thumbnail", "notes.txt"):
        (folder / "bird" / name).touch()
    (folder / "bird" / "sub").mkdir()
    (folder / "bird" / "sub" / "2.png").touch()
    (folder / "bird" / "link").symlink_to(outside / "kept.png")
    (folder / "bird" / "folder link").symlink_to(outside)
    (folder / "cat" / "1.png").touch()
    assert erase_originals(folder, "bird") == 5  # a link to a folder is no file
    assert list((folder / "bird").iterdir()) == []
    assert (folder / "cat" / "1.png").exists()
    assert (outside / "kept.png").exists()
    assert erase_originals(folder, "bird") == 0
    assert erase_originals(tmp_path / "none", "bird") == 0


@given(
    name=st.text(max_size=12) | st.sampled_from(["", ".", "..", "../inbox", "a/../../inbox", "/", "\x00", "x" * 999])
)
@settings(max_examples=100)
def test_no_name_of_a_class_leads_out_of_the_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "names"
    (root / "inbox" / "~a class~").mkdir(parents=True, exist_ok=True)
    precious = [root / "a.png", root / "inbox" / "b.png", root / "inbox" / "~a class~" / "c.png"]
    for path in precious:
        path.touch()
    erase_originals(root / "inbox", name)
    assert all(path.exists() for path in precious)


def test_originals_behind_a_link_or_that_stay_are_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "stick").symlink_to(tmp_path)
    with pytest.raises(VaultError, match="symbolic link"):
        erase_originals(folder, "stick")
    (folder / "bird" / "1.png").touch()

    def busy(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        with pytest.raises(VaultError, match=r"1 entries .* cannot be removed"):
            erase_originals(folder, "bird")
