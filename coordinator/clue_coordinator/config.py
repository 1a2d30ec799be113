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


class LogConfig(BaseModel):
    """``[log]``: how often a checkpoint is signed where something has changed, and whose cosignatures are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint_minutes: Annotated[float, Field(gt=0, le=10080)] = 60.0
    # Verifier keys of witnesses, name+keyid+base64.
    witnesses: tuple[str, ...] = ()


class CoordinatorConfig(BaseModel):
    """``coordinator.toml``.

    ``hosts`` are the names and addresses under which devices reach this machine; the first is
    what they are told to connect to. ``operator_listen`` is the address on which operators are
    answered, loopback unless they work from elsewhere. ``console_listen`` is the same for the web
    console: plain HTTP on loopback, TLS everywhere else; ``console_port`` 0 switches it off.
    ``metrics_device_limit`` is how many devices of a fleet have series of their own under
    ``/metrics/fleets/NAME``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hosts: Annotated[tuple[str, ...], Field(min_length=1)] = ("127.0.0.1",)
    listen: str = "127.0.0.1"
    operator_listen: str = "127.0.0.1"
    superlink_port: Port = 9092
    operator_port: Port = 9443
    enrolment_port: Port = 9444
    metrics_port: Port = 9464
    console_listen: str = "127.0.0.1"
    console_port: Annotated[int, Field(ge=0, le=65535)] = 9465
    # Life of the server's certificate; it is renewed by itself when a third of that is left.
    server_certificate_days: Annotated[float, Field(gt=0, le=3650)] = 90.0
    metrics_device_limit: Annotated[int, Field(ge=0)] = 1000
    ledger: LedgerConfig = LedgerConfig()
    log: LogConfig = LogConfig()
    home: Path = Field(default=Path(), exclude=True)

    @field_validator("operator_listen", "console_listen")
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
    def enrolment_listen_address(self) -> str:
        """``host:port`` on which devices with an invitation are answered."""
        return _address(self.listen, self.enrolment_port)

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
        listening = (self.operator_listen, *((self.console_listen,) if self.console_tls else ()))
        single = (host for host in listening if not ipaddress.ip_address(host).is_unspecified)
        return tuple(dict.fromkeys((*self.hosts, *single)))

    @property
    def metrics_url(self) -> str:
        """Where Prometheus scrapes."""
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    @property
    def console_tls(self) -> bool:
        """True where the console can be reached from other machines."""
        return not ipaddress.ip_address(self.console_listen).is_loopback

    @property
    def console_hosts(self) -> tuple[str, ...]:
        """Names and addresses under which browsers may ask for the console."""
        here = ("127.0.0.1", "::1", "localhost", self.console_listen)
        return tuple(dict.fromkeys((*here, *self.hosts))) if self.console_tls else tuple(dict.fromkeys(here))

    @property
    def console_url(self) -> str:
        """Where the console is, for a browser; of another machine's names the first."""
        if not self.console_tls:
            return f"http://{_address(self.console_listen, self.console_port)}/"
        anywhere = ipaddress.ip_address(self.console_listen).is_unspecified
        return f"https://{_address(self.hosts[0] if anywhere else self.console_listen, self.console_port)}/"

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
        """Private key that signs forget requests of fleets that need nobody's approval."""
        return self.home / "request-key.pem"

    @property
    def log_key(self) -> Path:
        """Private key that signs the transparency log's checkpoints."""
        return self.home / "log-key.pem"

    @property
    def log_verifier_keys(self) -> Path:
        """The log's verifier keys, one a line, the one in use first: for those who check the log."""
        return self.home / "log.vkey"

    @property
    def root_key(self) -> Path:
        """Private key that signs roots; not there where people hold the root's keys."""
        return self.home / "root-key.pem"

    @property
    def timestamp_key(self) -> Path:
        """Private key that signs the time."""
        return self.home / "timestamp-key.pem"

    @property
    def next_timestamp_key(self) -> Path:
        """The one that is to replace it, until a root says so."""
        return self.home / "timestamp-key-next.pem"

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
