"""The log's own key, the verifier keys that it had, and the witnesses whose cosignatures are kept."""

from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Signer

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.errors import ConfigError
from clue_protocol.certificate.trusted import log_name
from clue_protocol.files import write_atomic
from clue_protocol.keys import create_signing_key, load_signing_key
from clue_protocol.tlog import LOG_KEY, WITNESS_KEY, NoteKey, NoteKeyError
from clue_protocol.trust import new_installation_id


@dataclass(frozen=True)
class LogKeys:
    """What signs and checks the log.

    Attributes:
        signer: of the key in use.
        keys: verifier keys, the one in use first.
        witnesses: verifier keys that coordinator.toml names.
    """

    signer: Signer
    keys: tuple[NoteKey, ...]
    witnesses: tuple[NoteKey, ...]

    @property
    def installation(self) -> str:
        """Id of the installation that the log is named after."""
        return self.keys[0].name.removeprefix(log_name(""))

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.keys[0].name


def create_log_key(config: CoordinatorConfig, installation: str = "") -> Signer:
    """Make the log's key; its name is ``clue/`` and the installation's id, a new one by default."""
    signer = create_signing_key(config.log_key)
    key = NoteKey.of(log_name(installation or new_installation_id()), LOG_KEY, signer.public_key)
    write_atomic(config.log_verifier_keys, f"{key.to_text()}\n".encode())
    return signer


def ensure_log_key(config: CoordinatorConfig, installation: str = "") -> bool:
    """Make the key of an installation from before there was a log; True if it was made."""
    if config.log_key.exists():
        return False
    create_log_key(config, installation)
    return True


def load_log_keys(config: CoordinatorConfig) -> LogKeys:
    """Read them; ConfigError or KeyFileError says which is missing or wrong."""
    signer = load_signing_key(config.log_key)
    path = config.log_verifier_keys
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}, the log's verifier keys: {error}") from None
    keys = tuple(_key(line, LOG_KEY, path) for line in lines)
    if not keys or keys[0] != NoteKey.of(keys[0].name, LOG_KEY, signer.public_key):
        raise ConfigError(f"the first line of {path} is not the verifier key of {config.log_key}")
    where = config.home / "coordinator.toml"
    witnesses = tuple(_key(line, WITNESS_KEY, where) for line in config.log.witnesses)
    if len({key.name for key in witnesses}) != len(witnesses):
        raise ConfigError(f"{where}: two witnesses have one name")
    if len({key.public for key in (*keys, *witnesses)}) != len(keys) + len(witnesses):
        raise ConfigError(f"{where}: two of the log and its witnesses have one key")
    return LogKeys(signer, keys, witnesses)


def _key(line: str, kind: int, where: Path) -> NoteKey:
    try:
        key = NoteKey.from_text(line)
    except NoteKeyError as error:
        raise ConfigError(f"{where}: {error}") from None
    if key.kind != kind:
        raise ConfigError(f"{where}: {key.name} is the key of a {'witness' if kind == LOG_KEY else 'log'}")
    return key
