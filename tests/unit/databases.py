"""The databases that the ledger's tests run on: SQLite files, and schemas in one throw-away PostgreSQL server."""

import atexit
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from throwaway_postgresql import PostgresServer

KINDS = ("sqlite", "postgresql")
_numbers = count()


@cache
def server() -> PostgresServer:
    """Start the server once; skips the test where PostgreSQL is not installed."""
    try:
        # What is tested here is a killed client, not a power cut of the server.
        found = PostgresServer(durable=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    atexit.register(found.stop)
    return found


def new_url(kind: str, folder: Path) -> str:
    """URL of a database that nobody has used: a file in ``folder``, or a schema of the server."""
    number = next(_numbers)
    if kind == "sqlite":
        return f"sqlite:///{folder.resolve()}/ledger-{number}.sqlite"
    return server().new_schema(f"s{number}")
