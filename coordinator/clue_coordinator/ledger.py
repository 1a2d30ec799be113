"""The ledger: what was asked for, of whom, and what came of it. One writer, one transaction per change.

Every method that changes something commits before it returns, and writes its events in the
same transaction, so that a crash at any point loses nothing and invents nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, selectinload

from clue_coordinator import actor
from clue_coordinator.database import Database, reason
from clue_coordinator.errors import ConflictError, CoordinatorError
from clue_coordinator.migrations import migrate
from clue_coordinator.models import Event, Fleet


class Ledger:
    """The ledger in the SQLite file or under the database URL ``where``, made or upgraded if need be.

    ``changed`` is notified after every commit: waiters read again instead of polling.
    """

    def __init__(self, where: Path | str, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.changed = threading.Condition()
        self._version = 0
        self._writing = threading.Lock()
        self._database = Database(where)
        try:
            migrate(self._database)
        except SQLAlchemyError as error:
            self.close()
            raise CoordinatorError(f"cannot use the ledger {self._database.name}: {reason(error)}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the ledger's one daemon meanwhile; ConflictError if there is another, perhaps on another machine."""
        with self._failures():
            claim = self._database.claim()
        if claim is None:
            raise ConflictError(f"the ledger {self._database.name} is in use by another coordinator: stop it first")
        try:
            yield
        finally:
            claim.close()

    @property
    def version(self) -> int:
        """Rises with every commit of this process."""
        return self._version

    def wait_for_change(self, version: int, seconds: float) -> int:
        """Block until :attr:`version` differs from ``version``, at most ``seconds``; returns it."""
        with self.changed:
            self.changed.wait_for(lambda: self._version != version, seconds)
            return self._version

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading; CoordinatorError if the database fails."""
        with self._failures(), Session(self._database.reader, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session for one transaction: committed at the end, rolled back on any error.

        CoordinatorError if the database fails; IntegrityError, which a caller may expect, passes.
        """
        with (
            self._failures(),
            self._writing,
            Session(self._database.writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
        with self.changed:
            self._version += 1
            self.changed.notify_all()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            # A connection that broke during the commit leaves open whether the server has done it.
            lost = isinstance(error, DBAPIError) and error.connection_invalidated
            outcome = "look what is in it before you repeat a change" if lost else "nothing was changed"
            raise CoordinatorError(f"the ledger failed: {reason(error)}; {outcome}") from None

    def record(self, session: Session, kind: str, **fields: Any) -> None:
        """Append an event to the history, in the transaction of ``session``; it says who is acting."""
        session.add(Event(**{"at": self.clock(), "kind": kind, "actor": actor.current()} | fields))


def find_fleet(session: Session, name: str) -> Fleet | None:
    """The fleet called ``name``, with its devices."""
    return session.scalar(select(Fleet).where(Fleet.name == name).options(selectinload(Fleet.devices)))
