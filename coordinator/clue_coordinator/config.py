"""The coordinator's home folder and its ``coordinator.toml``."""

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clue_coordinator.errors import ConfigError

HOME_VARIABLE = "CLUE_COORDINATOR_HOME"
Port = Annotated[int, Field(ge=1, le=65535)]


class LedgerConfig(BaseModel):
    """``[ledger]``: ``url`` is empty for the SQLite file in the home folder, or ``postgresql+psycopg://...``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = ""


class CoordinatorConfig(BaseModel):
    """``coordinator.toml``.

    ``hosts`` are the names and addresses under which devices reach this machine; the first is
    what they are told to connect to. ``operator_listen`` is the address on which operators are
    answered, loopback unless they work from elsewhere. ``metrics_device_limit`` is how many devices
    of a fleet have series of their own under ``/metrics/fleets/NAME``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[tuple[str, ...], Field(min_length=1)] = ("127.0.0.1",)
    listen: str = "127.0.0.1"
    operator_listen: str = "127.0.0.1"
    superlink_port: Port = 9092
    operator_port: Port = 9443
    metrics_port: Port = 9464
    metrics_device_limit: Annotated[int, Field(ge=0)] = 1000
    ledger: LedgerConfig = LedgerConfig()
    home: Path = Field(default=Path(), exclude=True)

    @field_validator("operator_listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            raise ValueError(f"'{value}' is not an IP address; 0.0.0.0 is every address of this machine") from None

    @property
    def superlink_address(self) -> str:
        """``host:port`` that devices connect to."""
        return _address(self.hosts[0], self.superlink_port)

    @property
    def operator_address(self) -> str:
        """``host:port`` of the operator API for a client on this machine."""
        anywhere = ipaddress.ip_address(self.operator_listen).is_unspecified
        return _address("127.0.0.1" if anywhere else self.operator_listen, self.operator_port)

    @property
    def operator_listen_address(self) -> str:
        """``host:port`` on which the operator API listens."""
        return _address(self.operator_listen, self.operator_port)

    @property
    def certificate_hosts(self) -> tuple[str, ...]:
        """Names and addresses that the server's certificate must cover, beside this machine's own loopback."""
        anywhere = ipaddress.ip_address(self.operator_listen).is_unspecified
        return self.hosts if anywhere else tuple(dict.fromkeys((*self.hosts, self.operator_listen)))

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def ledger_file(self) -> Path:
        """The SQLite ledger, unless ``[ledger] url`` names another."""
        return self.home / "ledger.sqlite"

    @property
    def ledger_place(self) -> Path | str:
        """Where the ledger is: the file in the home folder or a database URL."""
        return self.ledger.url or self.ledger_file

    @property
    def request_key(self) -> Path:
        """Private key that signs forget requests."""
        return self.home / "request-key.pem"

    @property
    def operator_token(self) -> Path:
        """Bearer token of the operator API."""
        return self.home / "operator.token"

    @property
    def pki(self) -> Path:
        """Folder with the certificate authority and the server certificate."""
        return self.home / "pki"

    @property
    def flower(self) -> Path:
        """Flower's own home."""
        return self.home / "flower"

    @property
    def logs(self) -> Path:
        """Logs of the daemon's child processes."""
        return self.home / "logs"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def default_home() -> Path:
    """``CLUE_COORDINATOR_HOME``, or ``~/.clue/coordinator``."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.clue/coordinator").expanduser()


def load_config(home: Path) -> CoordinatorConfig:
    """Read ``home/coordinator.toml``; ConfigError says what is wrong with it."""
    home = home.expanduser()
    path = home / "coordinator.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no coordinator in {home}: run 'clue-coordinator init' first") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    data.pop("home", None)
    try:
        return CoordinatorConfig.model_validate({**data, "home": home.resolve()})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None


def config_text(config: CoordinatorConfig) -> str:
    """The TOML text of a configuration."""
    return tomli_w.dumps(config.model_dump(mode="json"))
