"""What a device has done, read from its home without disturbing a daemon that may be running there.

The journal is opened read-only, the model's description is read in the clear. Nothing here needs a key.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from clue.errors import BundleError
from clue.spec import read_spec
from clue_agent.config import AgentConfig
from clue_agent.errors import AgentError
from clue_agent.journal_schema import tells_attempts_apart
from clue_protocol.envelope import RECEIPT_TYPE, peek_message
from clue_protocol.errors import ProtocolError
from clue_protocol.v1 import forget_pb2 as pb


@dataclass(frozen=True)
class Work:
    """What the journal says.

    Attributes:
        unfinished: jobs to work on.
        outcomes: receipts by outcome, one an attempt; named as in forget.proto without the prefix, and all there.
        last: the latest receipt, None if there is none.
        last_measured: the latest receipt of a job that unlearned, with accuracies and energy.
    """

    unfinished: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    last: pb.Receipt | None = None
    last_measured: pb.Receipt | None = None


OUTCOMES = tuple(
    name.removeprefix("OUTCOME_") for name, number in pb.Outcome.items() if number != pb.OUTCOME_UNSPECIFIED
)


_OPEN = "receipt IS NULL AND recalled = 0"
_RECEIPTS = """
SELECT digest, attempt, received_at, receipt FROM job WHERE receipt IS NOT NULL AND kind = 'forget'
UNION ALL SELECT digest, attempt, received_at, receipt FROM earlier
"""
# Of a journal that no agent of this version has opened yet.
_OPEN_BEFORE_ATTEMPTS = "receipt IS NULL"
_RECEIPTS_BEFORE_ATTEMPTS = """
SELECT digest, 1 AS attempt, received_at, receipt FROM job WHERE receipt IS NOT NULL AND kind = 'forget'
"""


class JournalReader:
    """Reads the journal at ``path`` again and again; receipts it has seen are not parsed twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[tuple[bytes, int], tuple[float, pb.Receipt]] = {}

    def read(self) -> Work:
        """The journal now; empty if there is none yet. AgentError if it cannot be read."""
        if not self._path.exists():
            return Work(outcomes=dict.fromkeys(OUTCOMES, 0))
        try:
            with read_only(self._path) as db:
                known = tells_attempts_apart(db)
                open_jobs = _OPEN if known else _OPEN_BEFORE_ATTEMPTS
                [(unfinished,)] = db.execute(f"SELECT count(*) FROM job WHERE {open_jobs}")  # noqa: S608
                receipts = _RECEIPTS if known else _RECEIPTS_BEFORE_ATTEMPTS
                keys = db.execute(f"SELECT digest, attempt FROM ({receipts})").fetchall()  # noqa: S608
                for key in keys:
                    if key not in self._seen:
                        self._see(db, receipts, key)
        except sqlite3.Error as error:
            raise AgentError(f"cannot read the journal {self._path}: {error}") from None
        self._seen = {key: self._seen[key] for key in keys if key in self._seen}
        return self._summary(unfinished)

    def _see(self, db: sqlite3.Connection, receipts: str, key: tuple[bytes, int]) -> None:
        query = f"SELECT received_at, receipt FROM ({receipts}) WHERE digest = ? AND attempt = ?"  # noqa: S608
        row = db.execute(query, key).fetchone()
        try:
            # This device signed it; who could change the journal could also change what is shown from it.
            self._seen[key] = row[0], peek_message(row[1], RECEIPT_TYPE, pb.Receipt)
        except ProtocolError:
            self._seen[key] = row[0], pb.Receipt()

    def _summary(self, unfinished: int) -> Work:
        # By the end of the work, and by arrival where two ended in the same moment.
        ordered = [
            receipt
            for _, receipt in sorted(
                self._seen.values(), key=lambda seen: (seen[1].finished_at.ToNanoseconds(), seen[0])
            )
        ]
        counted = Counter(pb.Outcome.Name(receipt.outcome).removeprefix("OUTCOME_") for receipt in ordered)
        measured = [receipt for receipt in ordered if receipt.HasField("energy") and receipt.HasField("ua_after")]
        return Work(
            unfinished,
            {name: counted[name] for name in OUTCOMES},
            ordered[-1] if ordered else None,
            measured[-1] if measured else None,
        )


@dataclass(frozen=True)
class Model:
    """The model in use, by its description: digest (hex SHA-256 of model.json) and class names."""

    digest: str
    classes: tuple[str, ...]
    forgotten: tuple[str, ...]


def read_model(config: AgentConfig) -> Model:
    """The model in use, its weights not read; AgentError if there is none."""
    try:
        spec, digest = read_spec(config.store / "current")
    except BundleError as error:
        raise AgentError(str(error)) from None
    return Model(digest, tuple(spec.classes), tuple(spec.forgotten))


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """An SQLite database that this process cannot change; sqlite3.Error if it cannot be opened."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=5.0)) as db:
        yield db


__all__ = ["OUTCOMES", "JournalReader", "Model", "Work", "read_model", "read_only"]
