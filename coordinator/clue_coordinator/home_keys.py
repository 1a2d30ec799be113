"""The private keys in the coordinator's home: what it can sign by itself."""

import logging
from dataclasses import dataclass

from securesystemslib.signer import CryptoSigner, Signer

from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.role_keys import holds
from clue_coordinator.tlog.keys import LogKeys, ensure_log_key, load_log_keys
from clue_protocol.errors import KeyFileError
from clue_protocol.keys import create_signing_key, load_signing_key
from clue_protocol.trust import Role

log = logging.getLogger(__name__)


@dataclass
class HomeKeys:
    """Signers of the home.

    Attributes:
        request: signs requests of fleets that need nobody's approval.
        timestamps: those that may sign the time; more than one while the key is being replaced.
        root: signs roots; None once the root belongs to people.
        config: whose home; None for keys that are in no folder.
        log: of the transparency log; None in a home of before there was one.
    """

    request: Signer
    timestamps: tuple[Signer, ...]
    root: Signer | None = None
    config: CoordinatorConfig | None = None
    log: LogKeys | None = None

    def refresh(self) -> None:
        """Look again which timestamp keys and root key there are; KeyFileError if one cannot be used."""
        if self.config is not None:
            self.timestamps, self.root = _changing(self.config)


def create_home_keys(config: CoordinatorConfig) -> HomeKeys:
    """Make what is missing of an installation that has no root yet."""
    for path in (config.request_key, config.timestamp_key, config.root_key):
        if not path.exists():
            create_signing_key(path)
    ensure_log_key(config)
    return load_home_keys(config)


def load_home_keys(config: CoordinatorConfig) -> HomeKeys:
    """The keys of the home; KeyFileError if the request key, or a key that is there, cannot be used."""
    timestamps, root = _changing(config)
    log_keys = load_log_keys(config) if config.log_key.exists() else None
    return HomeKeys(load_signing_key(config.request_key), timestamps, root, config, log_keys)


def _changing(config: CoordinatorConfig) -> tuple[tuple[Signer, ...], Signer | None]:
    paths = (config.timestamp_key, config.next_timestamp_key)
    timestamps = tuple(load_signing_key(path) for path in paths if path.exists())
    return timestamps, load_signing_key(config.root_key) if config.root_key.exists() else None


def adopt_timestamp_key(config: CoordinatorConfig, role: Role) -> None:
    """Once the root names the next timestamp key and not the old one, it takes the old one's place."""
    if not config.next_timestamp_key.exists():
        return
    try:
        new: CryptoSigner = load_signing_key(config.next_timestamp_key)
        old = load_signing_key(config.timestamp_key) if config.timestamp_key.exists() else None
    except KeyFileError as error:
        log.warning("%s", error)
        return
    if holds(role, new.public_key) and (old is None or not holds(role, old.public_key)):
        config.next_timestamp_key.replace(config.timestamp_key)
