"""A PostgreSQL server for a few minutes: no network, a data folder that is deleted afterwards."""

import getpass
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg


class PostgresServer:
    """Started by the constructor, ended and deleted by :meth:`stop`.

    Args:
        durable: a commit waits for the disk, as in production. Without it only a power cut of the machine is risked.
        shared_buffers: PostgreSQL's own cache.

    Raises:
        FileNotFoundError: PostgreSQL is not installed.
    """

    def __init__(self, *, durable: bool, shared_buffers: str = "32MB") -> None:
        initdb, self._pg_ctl = _program("initdb"), _program("pg_ctl")
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else getpass.getuser()
        owner = pwd.getpwnam(self._user)
        self._group = owner.pw_gid
        # The path of a Unix socket must be short, and other users may not enter pytest's folders.
        self.folder = Path(tempfile.mkdtemp(prefix="clue-pg-"))
        os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._data = self.folder / "data"
        self._call(initdb, "-D", self._data, "-U", "clue", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = (
            f"-c listen_addresses='' -c unix_socket_directories={self.folder} "
            f"-c fsync={'on' if durable else 'off'} -c shared_buffers={shared_buffers}"
        )
        self._call(self._pg_ctl, "-D", self._data, "-l", self.folder / "server.log", "-w", "-o", options, "start")

    @property
    def pid(self) -> int:
        """Of the postmaster; its children serve the connections."""
        return int((self._data / "postmaster.pid").read_text(encoding="ascii").split()[0])

    def new_schema(self, name: str) -> str:
        """Make an empty schema; returns the URL of a ledger in it."""
        with psycopg.connect(host=str(self.folder), user="clue", dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[call-overload]
        return f"postgresql+psycopg://clue@/postgres?host={self.folder}&options=-csearch_path%3D{name}"

    def stop(self) -> None:
        """End it at once."""
        try:
            if (self._data / "postmaster.pid").exists():
                self._call(self._pg_ctl, "-D", self._data, "-m", "immediate", "-w", "stop")
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _call(self, *command: object) -> None:
        as_user = {"user": self._user, "group": self._group, "extra_groups": []} if os.geteuid() == 0 else {}
        with (self.folder / "calls.log").open("ab") as log:
            done = subprocess.run(
                [str(part) for part in command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
                check=False,
                **as_user,
            )
        assert done.returncode == 0, (self.folder / "calls.log").read_text()


def _program(name: str) -> str:
    """A PostgreSQL program; Debian keeps them outside PATH."""
    found = shutil.which(name)
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[4]))
    if found is None and not places:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    return found or str(places[-1])
