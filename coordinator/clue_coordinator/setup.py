"""``clue-coordinator init``: keys, certificates, ledger and configuration of an installation."""

import shutil
from contextlib import closing, suppress
from pathlib import Path

from clue_coordinator import roots
from clue_coordinator.config import CoordinatorConfig, config_text
from clue_coordinator.errors import ConfigError, ConflictError
from clue_coordinator.home_keys import create_home_keys
from clue_coordinator.ledger import Ledger
from clue_coordinator.pki import create_pki
from clue_coordinator.tokens import any_token, install_local_admin, is_usable, new_secret
from clue_protocol.files import LOCK_FILE, HomeLock, private_folder, write_atomic, write_new_secret


def initialise(config: CoordinatorConfig) -> None:
    """Fill ``config.home``; ConflictError if an installation is there. Nothing is left behind on failure."""
    home = config.home
    if (home / "coordinator.toml").exists():
        raise ConflictError(f"{home} already holds a coordinator: choose another --home")
    try:
        occupied = home.exists() and any(home.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot use {home} as a home folder: {error.strerror}") from None
    if occupied:
        raise ConflictError(f"{home} is not empty: choose another --home")
    existed = home.exists()
    lock = HomeLock(home)
    try:
        private_folder(home)
        lock.acquire()
    except OSError as error:
        raise ConfigError(f"cannot write {home}: {error.strerror}") from None
    try:
        _fill(config, existed)
    finally:
        lock.release()


def recover_local_admin(config: CoordinatorConfig) -> str:
    """Put a new admin token into the home folder; returns its name. The coordinator must be stopped."""
    lock = HomeLock(config.home)
    lock.acquire()
    try:
        secret = new_secret()
        with closing(Ledger(config.ledger_place)) as ledger, ledger.claimed():
            name = install_local_admin(ledger, secret)
            write_atomic(config.operator_token, f"{secret}\n".encode(), 0o600)
            return name
    finally:
        lock.release()


def knows_local_token(config: CoordinatorConfig) -> bool:
    """True if the token in the home folder can be used, or will be adopted when the coordinator starts."""
    with closing(Ledger(config.ledger_place)) as ledger, suppress(OSError, UnicodeDecodeError):
        secret = config.operator_token.read_text(encoding="ascii").strip()
        return not any_token(ledger) or is_usable(ledger, secret)
    return False


def _fill(config: CoordinatorConfig, existed: bool) -> None:
    """The work of :func:`initialise`, under the home's lock: two at once must not undo each other."""
    home = config.home
    if not home.is_dir() or any(path.name != LOCK_FILE for path in home.iterdir()):
        raise ConflictError(f"{home} is being filled by another 'clue-coordinator init'")
    try:
        keys = create_home_keys(config)
        create_pki(config.pki, config.certificate_hosts, config.server_certificate_days)
        secret = new_secret()
        write_new_secret(config.operator_token, f"{secret}\n".encode())
        with closing(Ledger(config.ledger_place)) as ledger:
            install_local_admin(ledger, secret)
            # A ledger that others used before has one, signed with keys of another home.
            roots.found(ledger, keys)
        # Last: its presence says that the home is complete. Private: a database URL may hold a password.
        write_atomic(home / "coordinator.toml", config_text(config).encode(), 0o600)
    except BaseException as error:
        _undo(home, existed)
        if isinstance(error, OSError):
            raise ConfigError(f"cannot write {home}: {error.strerror}") from None
        raise


def _undo(home: Path, keep_home: bool) -> None:
    if not keep_home:
        shutil.rmtree(home, ignore_errors=True)
        return
    for entry in home.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
