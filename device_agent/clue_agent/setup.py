"""Make an agent's home: keys made on the device, the first model, the enrolment document."""

import shutil
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import clue
from clue.errors import BundleError
from clue_agent.config import AgentConfig, config_text
from clue_agent.errors import AgentError, ConfigError
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore
from clue_agent.trust_files import TrustFiles, pinned_root
from clue_protocol.documents import Enrolment, Trust
from clue_protocol.errors import DocumentError, ProtocolError
from clue_protocol.files import LOCK_FILE, HomeLock, private_folder, write_atomic, write_new_secret
from clue_protocol.keys import create_signing_key, load_signing_key
from clue_protocol.trust.errors import RootForkError, RootInstallationError, RootRollbackError

# Says that what is in the home was begun by a command that may be repeated.
UNFINISHED = "setting-up"


def initialise(config: AgentConfig, model: Path, *, resumable: bool = False) -> Enrolment:
    """Fill ``config.home``; AgentError if it holds an agent already. Nothing is left behind on failure.

    Args:
        config: of the new agent.
        model: bundle to start with.
        resumable: go on where an earlier call with this set was killed, with the keys that it made.
    """
    home = config.home
    if (home / "agent.toml").exists():
        raise AgentError(f"{home} already holds an agent: choose another --home, or delete it first")
    existed = home.exists()
    lock = HomeLock(home)
    try:
        private_folder(home)
        lock.acquire()
    except OSError as error:
        raise AgentError(f"cannot write {home}: {error.strerror}") from None
    try:
        # Under the lock: two at once must not undo each other.
        if resumable and (home / UNFINISHED).exists():
            _clear_half(config)
            return _fill(config, model, existed)
        # Keys that are there are this device's identity.
        for path in (home / "agent.toml", config.receipt_key, config.supernode_key, config.store, config.journal):
            if path.exists():
                raise AgentError(
                    f"{home} already holds a part of an agent, {path.name}: choose another --home, or delete it first"
                )
        if resumable:
            write_atomic(home / UNFINISHED, b"")
        return _fill(config, model, existed)
    finally:
        lock.release()


def _fill(config: AgentConfig, model: Path, existed: bool) -> Enrolment:
    home = config.home
    try:
        store = ModelStore(config.store, KeyRing(config.keys))
        store.install(model)
        spec, digest = store.spec()
        # There are keys if setting up was begun before, and never others than those.
        there = config.receipt_key.exists()
        signer = load_signing_key(config.receipt_key) if there else create_signing_key(config.receipt_key)
        there = config.supernode_key.exists()
        supernode_key = (_supernode_line if there else _create_supernode_key)(config.supernode_key)
        enrolment = Enrolment(
            device_id=config.device_id,
            receipt_key=signer.public_key,
            supernode_key=supernode_key,
            classes=spec.classes,
            model_digest=digest,
            software_version=clue.__version__,
            labels=config.labels,
        )
        write_atomic(config.enrolment, enrolment.to_json().encode())
        # Last: its presence says that the home is complete.
        write_atomic(home / "agent.toml", config_text(config).encode())
        (home / UNFINISHED).unlink(missing_ok=True)
    except BaseException as error:
        _undo(config, existed)
        if isinstance(error, BundleError):
            raise AgentError(str(error)) from None
        if isinstance(error, OSError):
            raise AgentError(f"cannot write {home}: {error.strerror}") from None
        raise
    return enrolment


def discard(config: AgentConfig, keep_home: bool) -> None:
    """Take back :func:`initialise` of a device that nobody admitted; ``keep_home`` if the folder was there before."""
    (config.home / "agent.toml").unlink(missing_ok=True)
    _undo(config, keep_home)


def _undo(config: AgentConfig, keep_home: bool) -> None:
    shutil.rmtree(config.store, ignore_errors=True)
    shutil.rmtree(config.keys, ignore_errors=True)
    for name in (LOCK_FILE, UNFINISHED):
        (config.home / name).unlink(missing_ok=True)
    for path in (config.receipt_key, config.supernode_key, config.enrolment):
        path.unlink(missing_ok=True)
    if not keep_home:
        shutil.rmtree(config.home, ignore_errors=True)


def _clear_half(config: AgentConfig) -> None:
    """Remove what a killed call left, but for whole keys. Nothing of it was ever told to anyone: that is done later."""
    for folder in (config.store, config.keys):
        shutil.rmtree(folder, ignore_errors=True)
    for path, load in ((config.receipt_key, load_signing_key), (config.supernode_key, _supernode_line)):
        try:
            load(path)
        except (ProtocolError, ConfigError):
            path.unlink(missing_ok=True)


def own_enrolment(config: AgentConfig) -> Enrolment:
    """What a home that is set up says of its device; ConfigError if the document is damaged."""
    try:
        return Enrolment.from_json(config.enrolment.read_bytes())
    except (OSError, DocumentError) as error:
        raise ConfigError(f"cannot use {config.enrolment}: {getattr(error, 'strerror', None) or error}") from None


def _supernode_line(path: Path) -> str:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is not the key of a SuperNode") from None
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _create_supernode_key(path: Path) -> str:
    """Write the SuperNode's private key (EC P-384, OpenSSH PEM, as Flower wants it); returns its public line."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_new_secret(
        path,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    return _supernode_line(path)


def save_trust(config: AgentConfig, text: str, *, replace: bool = False) -> Trust:
    """Pin the root of a trust document, and keep the document.

    The same document, or a later one of the same installation, may be given again: the device goes forward only.

    Args:
        config: of the home.
        text: the document.
        replace: give up what was pinned before, for another installation or where it is damaged.

    Raises:
        ConfigError: the document is malformed, or would not take the device forward.
        AlreadyRunningError: the agent runs.
        TrustStateError: what was pinned is damaged, or the disk cannot be written.
    """
    try:
        trust = Trust.from_json(text)
        root = pinned_root(trust)
    except ProtocolError as error:
        raise ConfigError(f"this is not a trust document: {error}") from None
    files = TrustFiles(config.trust_folder)
    lock = HomeLock(config.home)
    lock.acquire()
    try:
        if replace or not (files.exist() and _is_pinned(config)):
            files.begin(root)
        else:
            files.advance(root)
        # Last: without it, what lies in the folder was never trusted.
        write_atomic(config.trust, text.encode(), mode=0o600)
    except (RootInstallationError, RootRollbackError, RootForkError) as error:
        raise ConfigError(
            f"{error}: get a newer document; or --replace makes the device give up what it remembers"
        ) from None
    finally:
        lock.release()
    return trust


def _is_pinned(config: AgentConfig) -> bool:
    try:
        Trust.from_json(config.trust.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, DocumentError):
        # One of an earlier version, which pinned keys and no root.
        return (config.trust_folder / "state.json").exists()
    return True


def load_trust(config: AgentConfig) -> Trust:
    """The trust document of this home; ConfigError says how to get one."""
    try:
        return Trust.from_json(config.trust.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{config.trust} does not exist: run 'clue-agent enroll' with a token, or add {config.enrolment} with "
            "'clue-coordinator device add' and give its answer to 'clue-agent trust'"
        ) from None
    except (OSError, DocumentError) as error:
        raise ConfigError(f"cannot use {config.trust}: {error}") from None
