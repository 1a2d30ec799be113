"""``agent.toml``: where things are on this device, and how hard it may work."""

import tomllib
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clue_agent.errors import ConfigError
from clue_agent.limits import LimitsConfig
from clue_agent.retention import VaultLimits
from clue_protocol.documents import check_labels, check_name
from clue_protocol.errors import DocumentError


class WorkConfig(BaseModel):
    """Limits of the unlearning process."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: Annotated[int, Field(ge=1, le=64)] = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 64
    # Importable model factories (module:function) that a bundle may name.
    allowed_factories: tuple[str, ...] = ()


class AgentConfig(BaseModel):
    """The whole file. Relative paths are relative to the file's folder, which is the agent's home."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device_id: str
    # Folder with one sub-folder of images per class: what may be used to forget.
    samples: Path
    # The same shape: images that are only ever used to measure. Without it a share of the samples is set aside.
    holdout: Path | None = None
    # Leave images in the samples folder after they were sealed, and do not erase them with the class.
    keep_originals: bool = False
    # Hand out the change that forgetting made to the model, to requests that ask for it (docs/agent.md: what it shows).
    share_updates: bool = False
    # What the coordinator is told of this device when it is enrolled; afterwards the coordinator keeps them.
    labels: dict[str, str] = {}
    work: WorkConfig = WorkConfig()
    limits: LimitsConfig = LimitsConfig()
    vault: VaultLimits = VaultLimits()
    # A base model that loses more than this by forgetting again stays out.
    max_update_ra_drop: Annotated[float, Field(ge=0, le=1)] = 0.05
    # Port on 127.0.0.1 for Prometheus; 0 is off.
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    # How long Flower's SuperExec stays after the last message; inf keeps it (about 100 MB) for ever. Longer than
    # a message lives (120 s), so that none can be left behind by one that was ended while it was still starting.
    superexec_linger_seconds: Annotated[float, Field(ge=10)] = 180.0
    home: Path = Field(default=Path(), exclude=True)

    @field_validator("device_id")
    @classmethod
    def _device_id(cls, value: str) -> str:
        try:
            return check_name("device", value)
        except DocumentError as error:
            raise ValueError(str(error)) from None

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        try:
            check_labels(value)
        except DocumentError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def store(self) -> Path:
        """The model store."""
        return self.home / "model"

    @property
    def keys(self) -> Path:
        """Keys of everything that is sealed, one file each."""
        return self.home / "keys"

    @property
    def vault_folder(self) -> Path:
        """Sealed samples."""
        return self.home / "vault"

    @property
    def receipt_key(self) -> Path:
        """Private key that signs receipts."""
        return self.home / "receipt-key.pem"

    @property
    def supernode_key(self) -> Path:
        """Private key of the Flower SuperNode."""
        return self.home / "supernode-key.pem"

    @property
    def trust(self) -> Path:
        """What the coordinator told this device to trust."""
        return self.home / "trust.json"

    @property
    def trust_folder(self) -> Path:
        """What has become of it since: the newest root, the time, the last requests."""
        return self.home / "trust"

    @property
    def enrolment(self) -> Path:
        """What this device says of itself."""
        return self.home / "enrolment.json"

    @property
    def journal(self) -> Path:
        """The journal of jobs."""
        return self.home / "journal.sqlite"

    @property
    def logs(self) -> Path:
        """Logs of the daemon's child processes."""
        return self.home / "logs"


def load_config(path: Path) -> AgentConfig:
    """Read agent.toml; ConfigError names the field that is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: run 'clue-agent enroll' or 'clue-agent init' first") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    home = path.resolve().parent
    data.pop("home", None)
    if any((home / "model" / slot / "model.safetensors").exists() for slot in ("a", "b")):
        raise ConfigError(
            f"{home} was made by an earlier version, whose model lies there in the clear: make another home with "
            f"'clue-agent init --model {home / 'model' / 'current'} --home NEW', enrol it, then delete this one"
        )
    try:
        config = AgentConfig.model_validate({**data, "home": home})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    holdout = home / config.holdout if config.holdout is not None else None
    return config.model_copy(update={"samples": home / config.samples, "holdout": holdout})


def config_text(config: AgentConfig) -> str:
    """The TOML text of a configuration."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
