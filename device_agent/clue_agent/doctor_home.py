"""Checks of the agent's home: permissions, keys, both model slots, journal, samples and holdout, free disk."""

import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from clue_agent.config import AgentConfig
from clue_agent.doctor import Finding, fail, ok, warn
from clue_agent.errors import AgentError, StoreError
from clue_agent.observe import JournalReader, read_model, read_only
from clue_agent.retention import Part
from clue_agent.samples import count_images
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore
from clue_agent.vault import Vault
from clue_protocol.errors import KeyFileError
from clue_protocol.keys import load_signing_key

_FEW_SAMPLES = 10
_SLOTS = ("a", "b")
# A job writes a checkpoint and a new model beside the two that are there.
_COPIES = 4
_SPARE_BYTES = 64_000_000


def permissions(config: AgentConfig) -> Iterator[Finding]:
    """The home and everything secret in it belongs to its user alone."""
    home = config.home
    if not home.stat().st_mode & stat.S_IWUSR:
        yield fail("home", f"{home} cannot be written", f"run 'chmod 700 {home}'")
        return
    secret = [home, config.keys, config.receipt_key, config.supernode_key, config.trust, config.trust_folder]
    open_ones = [path for path in secret if path.exists() and path.stat().st_mode & 0o077]
    for path in open_ones:
        mode = "700" if path.is_dir() else "600"
        yield fail("home", f"{path} can be read by others", f"run 'chmod {mode} {path}'")
    owners = {path.stat().st_uid for path in secret if path.exists()}
    if len(owners) > 1:
        yield fail("home", "its files belong to different users", f"run 'sudo chown -R USER {home}' for its one user")
    elif not open_ones:
        yield ok("home", f"{home}: only its owner can read it")


def keys(config: AgentConfig) -> Iterator[Finding]:
    """The two private keys can be loaded. Their content is never shown."""
    try:
        load_signing_key(config.receipt_key)
        yield ok("receipt key", "Ed25519")
    except KeyFileError as error:
        yield fail("receipt key", str(error), "restore the file from a backup, or enrol the device again")
    try:
        key = load_ssh_private_key(config.supernode_key.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = getattr(error, "strerror", None) or "not a private key in OpenSSH format"
        yield fail(
            "supernode key",
            f"cannot use {config.supernode_key}: {reason}",
            "restore the file from a backup, or enrol the device again",
        )
        return
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        yield ok("supernode key", "EC P-384")
    else:
        yield fail("supernode key", "it is not on curve P-384", "enrol the device again")


def model(config: AgentConfig) -> Iterator[Finding]:
    """Every byte of both slots is read, decrypted and compared with its digest."""
    store = ModelStore(config.store, KeyRing(config.keys))
    try:
        current = store.current_slot()
    except StoreError as error:
        yield fail("model", str(error), "enrol the device again with a model")
        return
    for slot in (current, *(other for other in _SLOTS if other != current)):
        used = "in use" if slot == current else "spare"
        try:
            stored = store.read(slot)
        except StoreError as error:
            if slot == current:
                yield fail(f"model slot {slot}", str(error), "restart the agent: it goes back to the whole slot")
            else:
                yield warn(
                    f"model slot {slot}", f"spare: {error}", "between two jobs, restart the agent: it copies the model"
                )
            continue
        size = len(stored.weights) / 1e6
        yield ok(f"model slot {slot}", f"{used}, {stored.digest[:16]}, {size:.1f} MB, whole")


def journal(config: AgentConfig) -> Iterator[Finding]:
    """SQLite's own check of the file, and what it holds."""
    if not config.journal.exists():
        yield ok("journal", "none yet: the agent has not run")
        return
    try:
        with read_only(config.journal) as db:
            [(verdict,), *_] = db.execute("PRAGMA quick_check(1)").fetchall()
        work = JournalReader(config.journal).read()
    except (sqlite3.Error, AgentError) as error:
        verdict = str(error)
    if verdict != "ok":
        yield fail(
            "journal", f"{config.journal}: {verdict}", "restart the agent: it puts the file aside and begins anew"
        )
        return
    done = sum(work.outcomes.values())
    yield ok("journal", f"whole, {done} receipt(s), {work.unfinished} job(s) unfinished")


def images(config: AgentConfig) -> Iterator[Finding]:
    """Samples and holdout of every class that is still known."""
    try:
        known = read_model(config)
    except AgentError:
        return  # the check of the model says so
    classes = [name for name in known.classes if name not in known.forgotten]
    checks: tuple[tuple[str, Path | None, str, Part], ...] = (
        ("samples", config.samples, "forgotten", "forget"),
        ("holdout", config.holdout or config.samples, "measured", "holdout"),
    )
    for check, root, purpose, part in checks:
        counts = {name: _count(config, root, name, part) for name in classes}
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        missing = [name for name, count in counts.items() if count == 0]
        few = [name for name, count in counts.items() if 0 < count < _FEW_SAMPLES]
        if len(missing) == len(classes):
            yield fail(check, f"{root} holds no image of any class", f"put images into {root}/<class>/")
        elif missing:
            advice = f"without images in {root}/<class>/ these cannot be {purpose}"
            yield warn(check, f"none of {', '.join(missing)} ({listed})", advice)
        elif few:
            yield warn(check, f"fewer than {_FEW_SAMPLES} of {', '.join(few)} ({listed})", f"put more into {root}")
        else:
            yield ok(check, listed)


def disk(config: AgentConfig) -> Iterator[Finding]:
    """Room for a job: a checkpoint and a new model beside the old ones."""
    free = shutil.disk_usage(config.home).free
    needed = _COPIES * _size(config.store) // len(_SLOTS) + _SPARE_BYTES
    detail = f"{free / 1e6:,.0f} MB free, a job needs about {needed / 1e6:,.0f}"
    if free < needed:
        yield fail("disk", detail, f"make room on the file system of {config.home}")
    elif free < 2 * needed:
        yield warn("disk", detail, f"make room on the file system of {config.home}")
    else:
        yield ok("disk", detail)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


CHECKS = (permissions, keys, model, journal, images, disk)


def _count(config: AgentConfig, folder: Path | None, name: str, part: Part) -> int:
    """Images of a class, sealed ones and those that wait in the folder."""
    waiting = count_images(folder, name) if folder is not None else 0
    if not config.vault_folder.is_dir():
        return waiting
    return waiting + Vault(config.vault_folder, KeyRing(config.keys)).count(name, part)
