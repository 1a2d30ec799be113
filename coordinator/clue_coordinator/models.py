"""The ledger's tables (SQLAlchemy 2). Times are UTC seconds since the epoch."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy import String as _String
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class String(TypeDecorator[str]):
    """Text that may come from a device: PostgreSQL cannot store the character NUL, SQLite can."""

    impl = _String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Replace it on the way in, so that both databases hold the same."""
        return value if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


# Columns that were made before their numbers could need 64 bits; SQLite's integers have them anyway.
_Grown = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """Declarative base."""


class Fleet(Base):
    """A named group of devices; ``sequence`` is the number of its last request (epoch << 32 | count) and only rises."""

    __tablename__ = "fleet"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created_at: Mapped[float] = mapped_column(Float)
    sequence: Mapped[int] = mapped_column(_Grown, default=0)
    devices: Mapped[list["Device"]] = relationship(back_populates="fleet", order_by="Device.device_id")


class Device(Base):
    """An enrolled device: its keys, its Flower node, and what its model knows."""

    __tablename__ = "device"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    device_id: Mapped[str] = mapped_column(String(63), unique=True)
    fleet_id: Mapped[int] = mapped_column(ForeignKey("fleet.id"), index=True)
    # Flower's node ids are unsigned 64-bit numbers: text, because SQL integers are signed.
    node_id: Mapped[str] = mapped_column(String(20), unique=True)
    receipt_key: Mapped[dict[str, object]] = mapped_column(JSON)
    supernode_key: Mapped[str] = mapped_column(String)
    classes: Mapped[list[str]] = mapped_column(JSON)
    model_digest: Mapped[str] = mapped_column(String(64))
    software_version: Mapped[str] = mapped_column(String(64))
    online: Mapped[bool] = mapped_column(Boolean, default=False)
    last_seen: Mapped[float | None] = mapped_column(Float)
    enrolled_at: Mapped[float] = mapped_column(Float)
    labels: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    # Taken out for good; its name and its receipts stay.
    retired_at: Mapped[float | None] = mapped_column(Float)
    # Cut off for good, why, and the document in the log that says so; retired_at is set, too.
    revoked_at: Mapped[float | None] = mapped_column(Float)
    revocation_reason: Mapped[str] = mapped_column(String, default="", server_default="")
    revocation: Mapped[bytes | None] = mapped_column(LargeBinary)
    # Receipts that came after that.
    refused_receipts: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    # Since when Flower does not admit it any more.
    cut_off_at: Mapped[float | None] = mapped_column(Float)
    # What it signed when it enrolled itself: the proof that its name and its receipt key belong together.
    enrolment_envelope: Mapped[bytes | None] = mapped_column(LargeBinary)
    # Newest root that it said it has, or was enrolled with; 0 if it never said.
    root_version: Mapped[int] = mapped_column(BigInteger, default=0)
    # What it asks the time with; empty if it does not ask.
    time_nonce: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    # Highest number of a request that was handed out to it: it refuses lower ones.
    begun_sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    last_receipt_at: Mapped[float | None] = mapped_column(Float)
    # As its last receipt shows (tallies.clock_skew).
    clock_skew_seconds: Mapped[float | None] = mapped_column(Float)
    fleet: Mapped[Fleet] = relationship(back_populates="devices")


class Request(Base):
    """A signed forget request."""

    __tablename__ = "request"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    fleet_id: Mapped[int] = mapped_column(ForeignKey("fleet.id"), index=True)
    forget_class: Mapped[str] = mapped_column(String)
    method: Mapped[str] = mapped_column(String(63))
    max_ua: Mapped[float] = mapped_column(Float)
    max_ra_drop: Mapped[float] = mapped_column(Float)
    state: Mapped[str] = mapped_column(String(20))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    idempotency_key: Mapped[str | None] = mapped_column(String(64), unique=True)
    created_by: Mapped[str] = mapped_column(String)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    # Which devices (targets.Target) and how (plan.RolloutPlan).
    target: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    plan: Mapped[dict[str, object]] = mapped_column(JSON, default=dict)
    # Number of executions by state: a count over all of them with every receipt would make a rollout quadratic.
    counts: Mapped[dict[str, int]] = mapped_column(JSON, default=dict)
    # The newest wave that may begin, since when, and the last one there is; the canary is wave 0.
    wave: Mapped[int] = mapped_column(Integer, default=1)
    wave_at: Mapped[float | None] = mapped_column(Float)
    waves: Mapped[int] = mapped_column(Integer, default=1)
    paused_at: Mapped[float | None] = mapped_column(Float)
    reason: Mapped[str] = mapped_column(String, default="")
    retry_of: Mapped[str | None] = mapped_column(String(36))
    # Of its fleet's requests; 0 for those of the first form.
    sequence: Mapped[int] = mapped_column(_Grown, default=0)
    # Signatures that the fleet's request role asks for, and those there are of it: [{"keyid", "name", "at"}].
    approvals_needed: Mapped[int] = mapped_column(Integer, default=1)
    approvals: Mapped[list[dict[str, object]]] = mapped_column(JSON, default=list)
    fleet: Mapped[Fleet] = relationship()
    executions: Mapped[list["Execution"]] = relationship(back_populates="request", order_by="Execution.device_pk")


class Execution(Base):
    """One request on one device."""

    __tablename__ = "execution"
    __table_args__ = (
        UniqueConstraint("request_id", "device_pk"),
        Index("ix_execution_state", "state", "lease_until"),
        Index("ix_execution_request", "request_id", "state", "wave"),
        Index("ix_execution_reason", "reason", "state", "request_id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("request.id"))
    device_pk: Mapped[int] = mapped_column(ForeignKey("device.id"), index=True)
    state: Mapped[str] = mapped_column(String(20))
    wave: Mapped[int] = mapped_column(Integer, default=1)
    # Of the signed document that it is given: its request's, or its patch's.
    sequence: Mapped[int] = mapped_column(BigInteger, default=0)
    # Handed to the dispatcher until then; nobody else may take it.
    lease_until: Mapped[float | None] = mapped_column(Float)
    # Not begun before: back-off, or quiet hours.
    not_before: Mapped[float | None] = mapped_column(Float)
    # The device may have it: it was handed out and no answer came yet.
    handed_out: Mapped[bool] = mapped_column(Boolean, default=False)
    # "patch" while it waits for one, "approval" while its request waits for approvals.
    waiting: Mapped[str] = mapped_column(String(16), default="")
    # Which attempt of the request's max_attempts, from 1.
    attempt: Mapped[int] = mapped_column(Integer, default=1)
    # Answers that were no receipts.
    faults: Mapped[int] = mapped_column(Integer, default=0)
    stage: Mapped[str] = mapped_column(String(32), default="")
    fraction: Mapped[float] = mapped_column(Float, default=0.0)
    reason: Mapped[str] = mapped_column(String(64), default="")
    detail: Mapped[str] = mapped_column(String, default="")
    receipt_envelope: Mapped[bytes | None] = mapped_column(LargeBinary)
    # What the accepted receipt says, as shares; None where it was not measured.
    ua_before: Mapped[float | None] = mapped_column(Float)
    ua_after: Mapped[float | None] = mapped_column(Float)
    ra_before: Mapped[float | None] = mapped_column(Float)
    ra_after: Mapped[float | None] = mapped_column(Float)
    ra_drop: Mapped[float | None] = mapped_column(Float)
    # Digest of the model before, as the device says.
    base_digest: Mapped[str] = mapped_column(String(64), default="")
    patch_id: Mapped[str | None] = mapped_column(ForeignKey("patch.id"))
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)
    request: Mapped[Request] = relationship(back_populates="executions", foreign_keys=[request_id])
    device: Mapped[Device] = relationship()
    patch: Mapped["Patch | None"] = relationship(lazy="selectin")


class PastReceipt(Base):
    """A receipt that was not the last word: of an attempt after which there was another."""

    __tablename__ = "past_receipt"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    execution_id: Mapped[str] = mapped_column(ForeignKey("execution.id"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    received_at: Mapped[float] = mapped_column(Float)


class Update(Base):
    """What forgetting changed in a device's model, kept until its request is over."""

    __tablename__ = "model_update"

    execution_id: Mapped[str] = mapped_column(ForeignKey("execution.id"), primary_key=True)
    base_digest: Mapped[str] = mapped_column(String(64), index=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    received_at: Mapped[float] = mapped_column(Float)


class Patch(Base):
    """A signed patch for devices without images; ``id`` is the request id of its envelope."""

    __tablename__ = "patch"
    __table_args__ = (UniqueConstraint("request_id", "base_digest"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("request.id"))
    base_digest: Mapped[str] = mapped_column(String(64))
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    # Megabytes: read only where it is handed out.
    body: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    report: Mapped[dict[str, object]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float)


class Event(Base):
    """Append-only history: who or what changed which request or execution, when. Triggers refuse all but inserts."""

    __tablename__ = "event"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(32))
    fleet: Mapped[str] = mapped_column(String(63), default="")
    device_id: Mapped[str] = mapped_column(String(63), default="")
    request_id: Mapped[str] = mapped_column(String(36), default="", index=True)
    detail: Mapped[str] = mapped_column(String, default="")
    # Name of the operator's token; empty where a device or the coordinator itself did it.
    actor: Mapped[str] = mapped_column(String(63), default="", server_default="")


class Token(Base):
    """A bearer token of the operator API: its SHA-256, never the token itself. Rows stay when it is revoked."""

    __tablename__ = "token"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(Float)
    created_by: Mapped[str] = mapped_column(String(63))
    expires_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)
    # Written at most once a minute.
    last_used_at: Mapped[float | None] = mapped_column(Float)


class Invitation(Base):
    """A token with which one device can enrol itself: the SHA-256 of its secret, never the secret itself."""

    __tablename__ = "invitation"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    fleet_id: Mapped[int] = mapped_column(ForeignKey("fleet.id"))
    # The name that the device must take; empty if it may choose.
    device_id: Mapped[str] = mapped_column(String(63), default="")
    labels: Mapped[dict[str, str]] = mapped_column(JSON, default=dict)
    # Version of the root whose digest the token carries.
    root_version: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Float)
    created_by: Mapped[str] = mapped_column(String(63))
    expires_at: Mapped[float] = mapped_column(Float)
    withdrawn_at: Mapped[float | None] = mapped_column(Float)
    # Key id of the receipt key of the device that came first: from then on the token is that device's.
    receipt_keyid: Mapped[str | None] = mapped_column(String(64))
    # Set with the device it made; no two invitations make one device, and no invitation makes two.
    device_pk: Mapped[int | None] = mapped_column(ForeignKey("device.id"), unique=True)
    used_at: Mapped[float | None] = mapped_column(Float)
    fleet: Mapped[Fleet] = relationship()
    device: Mapped[Device | None] = relationship()


class RootVersion(Base):
    """A root of the installation, as its holders signed it. Triggers refuse all but inserts."""

    __tablename__ = "root"

    version: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    # SHA-256 of its payload, in hex.
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)


class TimeSequence(Base):
    """The number of the last time attestation; one row."""

    __tablename__ = "time_sequence"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class KeyName(Base):
    """What people call a public key, as whoever put it into a root said. It proves nothing."""

    __tablename__ = "key_name"

    keyid: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))


class Tally(Base):
    """What receipts said, counted (:mod:`clue_coordinator.tallies`); ``request_id`` is empty for a whole fleet."""

    __tablename__ = "tally"
    __table_args__ = (UniqueConstraint("fleet_id", "request_id", "name", "label", "edge"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    fleet_id: Mapped[int] = mapped_column(ForeignKey("fleet.id"))
    request_id: Mapped[str] = mapped_column(String(36), index=True)
    name: Mapped[str] = mapped_column(String(32))
    label: Mapped[str] = mapped_column(String(32))
    edge: Mapped[str] = mapped_column(String(32))
    count: Mapped[int] = mapped_column(BigInteger)
    total: Mapped[float] = mapped_column(Float)
    # The last observation, and the request it came with.
    last_request: Mapped[str] = mapped_column(String(36))
    last_value: Mapped[float] = mapped_column(Float)
    last_at: Mapped[float] = mapped_column(Float)


class LogLeaf(Base):
    """A leaf of the log; ``id`` is its index, from 0. Triggers refuse all but inserts, as in all log tables."""

    __tablename__ = "log_leaf"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    # As in clue_protocol.tlog.Leaf.
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    reference: Mapped[str] = mapped_column(String(255), index=True)
    # 32 bytes.
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class LogNode(Base):
    """Hash over 256 ** ``level`` leaves, from leaf ``position`` * 256 ** ``level`` on; ``level`` is at least 1."""

    __tablename__ = "log_node"
    __table_args__ = (UniqueConstraint("level", "position"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    level: Mapped[int] = mapped_column(Integer)
    position: Mapped[int] = mapped_column(Integer)
    hash: Mapped[bytes] = mapped_column(LargeBinary)


class LogCheckpoint(Base):
    """A checkpoint as the log has signed it."""

    __tablename__ = "log_checkpoint"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    size: Mapped[int] = mapped_column(Integer, index=True)
    note: Mapped[str] = mapped_column(String)


class LogCosignature(Base):
    """A witness's signature line of a checkpoint, and when it came."""

    __tablename__ = "log_cosignature"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    checkpoint_id: Mapped[int] = mapped_column(ForeignKey("log_checkpoint.id"), index=True)
    at: Mapped[float] = mapped_column(Float)
    line: Mapped[str] = mapped_column(String)
