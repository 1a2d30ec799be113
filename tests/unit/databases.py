"""The databases that the ledger's tests run on: SQLite files, and schemas in one throw-away PostgreSQL server."""

import atexit
import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path

import psycopg
import pytest

KINDS = ("sqlite", "postgresql")
_numbers = count()


def _program(name: str) -> str | None:
    """A PostgreSQL program; Debian keeps them outside PATH."""
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    return found or (str(places[-1]) if places else None)


@cache
def server() -> str:
    """Start the server once; returns its socket's folder, or skips the test where PostgreSQL is not installed."""
    initdb, postgres = _program("initdb"), _program("pg_ctl")
    if initdb is None or postgres is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    owner = pwd.getpwnam(user)
    # Not in tmp_path: the path of a Unix socket must be short, and other users may not enter it.
    folder = Path(tempfile.mkdtemp(prefix="clue-pg-"))
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"

    def call(*command: object) -> None:
        as_user = {"user": user, "group": owner.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
        with (folder / "calls.log").open("ab") as log:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                **as_user,
            )
        assert done.returncode == 0, (folder / "calls.log").read_text()

    @atexit.register
    def stop() -> None:
        try:
            if (data / "postmaster.pid").exists():
                call(postgres, "-D", data, "-m", "immediate", "-w", "stop")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    call(initdb, "-D", data, "-U", "clue", "-A", "trust", "-E", "UTF8", "--no-sync")
    # No network, and no sync: what is tested here is a killed client, not a power cut of the server.
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c shared_buffers=32MB"
    call(postgres, "-D", data, "-l", folder / "server.log", "-w", "-o", options, "start")
    return str(folder)


def new_url(kind: str, folder: Path) -> str:
    """URL of a database that nobody has used: a file in ``folder``, or a schema of the server."""
    number = next(_numbers)
    if kind == "sqlite":
        return f"sqlite:///{folder.resolve()}/ledger-{number}.sqlite"
    host = server()
    with psycopg.connect(host=host, user="clue", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA s{number}")  # type: ignore[call-overload]
    return f"postgresql+psycopg://clue@/postgres?host={host}&options=-csearch_path%3Ds{number}"
