"""Where an operator's commands go: the coordinator whose home is on this machine, or one elsewhere."""

import re
from dataclasses import dataclass
from pathlib import Path

from clue_coordinator.config import CoordinatorConfig, load_config
from clue_coordinator.errors import ConfigError, UsageError

SERVER_VARIABLE, CA_VARIABLE, TOKEN_VARIABLE = "CLUE_SERVER", "CLUE_CA_FILE", "CLUE_TOKEN_FILE"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+):([0-9]{1,5})\Z")
# What an HTTP header may hold.
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")


@dataclass(frozen=True)
class Remote:
    """What the command line or the environment says of another coordinator or another token."""

    server: str = ""
    ca_file: Path | None = None
    token_file: Path | None = None


@dataclass(frozen=True)
class Connection:
    """All that a client needs.

    Attributes:
        address: ``host:port`` of the operator API.
        ca_pem: certificates of which one must have signed the server's.
        token: bearer token.
        home: the coordinator's home if it is on this machine, for messages.
    """

    address: str
    ca_pem: bytes
    token: str
    home: Path | None = None

    @classmethod
    def local(cls, config: CoordinatorConfig, remote: Remote = Remote()) -> "Connection":
        """To the coordinator in ``config.home``, perhaps with a token or certificates from elsewhere."""
        token_file = remote.token_file or config.operator_token
        try:
            ca_pem = (remote.ca_file or config.pki / "ca.pem").expanduser().read_bytes()
            token = token_file.expanduser().read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the operator's credentials for {config.home}: {error}") from None
        return cls(config.operator_address, ca_pem, _checked(token, token_file), config.home)

    @classmethod
    def remote(cls, remote: Remote) -> "Connection":
        """To a coordinator on another machine; UsageError says what is missing."""
        match = _ADDRESS.match(remote.server)
        if match is None or not 1 <= int(match[2]) <= 65535:
            raise UsageError(f"the server must be HOST:PORT, got '{remote.server}'")
        for path, option, variable in (
            (remote.ca_file, "--ca", CA_VARIABLE),
            (remote.token_file, "--token-file", TOKEN_VARIABLE),
        ):
            if path is None:
                raise UsageError(f"the server {remote.server} needs {option} FILE or {variable}")
        assert remote.ca_file is not None and remote.token_file is not None  # noqa: PT018, S101
        ca_pem = _read(remote.ca_file)
        if b"-----BEGIN CERTIFICATE-----" not in ca_pem:
            raise UsageError(f"{remote.ca_file} holds no PEM certificate: it is pki/ca.pem of the coordinator's home")
        try:
            token = _read(remote.token_file).decode("ascii").strip()
        except UnicodeDecodeError:
            token = ""
        return cls(remote.server, ca_pem, _checked(token, remote.token_file))


def connection_for(home: Path, remote: Remote) -> Connection:
    """The server of ``remote`` if it names one, else the coordinator in ``home``."""
    return Connection.remote(remote) if remote.server else Connection.local(load_config(home), remote)


def _read(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _checked(token: str, path: Path) -> str:
    if not _TOKEN.match(token):
        raise ConfigError(f"{path} holds no token: it must be one line of ASCII without blanks")
    return token
