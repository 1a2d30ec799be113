"""The ledger: old ones are upgraded, the history only grows, a kill loses nothing, a backup brings everything back."""

import multiprocessing
import os
import random
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import databases
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from fleet_ledger import SIGNER, Fleet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import MetaData, delete, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from clue_coordinator import database as database_module
from clue_coordinator import enrol, migrations, requests, rollout
from clue_coordinator.backup import back_up, restore
from clue_coordinator.config import CoordinatorConfig, LedgerConfig
from clue_coordinator.database import Database, parse_url
from clue_coordinator.errors import BackupError, ConfigError, ConflictError, CoordinatorError, LedgerVersionError
from clue_coordinator.executions import check_counts
from clue_coordinator.ledger import Ledger, find_fleet
from clue_coordinator.models import Base, Event, Execution, Request
from clue_coordinator.models import Fleet as FleetRow
from clue_coordinator.plan import RolloutPlan
from clue_protocol.errors import AlreadyRunningError
from clue_protocol.files import HomeLock

NewUrl = Callable[[], str]


def rows(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Everything in a ledger, by table."""
    database = Database(url)
    try:
        with database.reader.begin() as connection:
            return {
                table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
                for table in Base.metadata.sorted_tables
            }
    finally:
        database.close()


def execute(url: str, *statements: str) -> None:
    database = Database(url)
    try:
        with database.writer.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        database.close()


@pytest.fixture
def lived(new_url: NewUrl) -> str:
    """A ledger with a finished request, one under way and one that waits."""
    url = new_url()
    fleet = Fleet.make(url, 2)
    done = fleet.order()
    fleet.lease(0, 1)
    fleet.report(done, 0)
    fleet.report(done, 1, detail="ü\0\N{SNOWMAN}")
    fleet.order("cat", idempotency_key="k")
    fleet.lease(0)
    fleet.order("owl", hyperparameters={"epochs": 2})
    fleet.ledger.close()
    return url


# Migrations


def unversioned(url: str) -> None:
    """Make a ledger as it was before there were versions."""
    database = Database(url)
    with database.writer.begin() as connection:
        migrations.upgrade(connection, "0001")
        connection.execute(text(f"DROP TABLE {migrations.VERSION_TABLE}"))
    database.close()


def test_the_steps_make_what_the_models_say(new_url: NewUrl) -> None:
    url = new_url()
    Ledger(url).close()
    database = Database(url)
    with database.reader.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": migrations.VERSION_TABLE,
                "compare_type": True,
                "include_object": lambda _object, name, _kind, _reflected, _other: name != migrations.VERSION_TABLE,
            },
        )
        assert compare_metadata(context, Base.metadata) == []
        assert migrations.revision_of(connection, "x") == migrations.newest()
    database.close()


def test_a_ledger_from_before_the_versions_is_upgraded(new_url: NewUrl, lived: str) -> None:
    old = new_url()
    unversioned(old)
    database = Database(old)
    with database.writer.begin() as connection:
        was = MetaData()
        was.reflect(connection)
        for table in Base.metadata.sorted_tables:
            for row in rows(lived)[table.name] if table.name in was.tables else ():
                named = dict(zip(table.columns.keys(), row, strict=True))
                named["attempts"] = named.get("faults")  # its name then
                columns = was.tables[table.name].columns
                connection.execute(
                    was.tables[table.name].insert().values({n: v for n, v in named.items() if n in columns})
                )
    with database.reader.begin() as connection:
        assert migrations.revision_of(connection, "x") == "0001"
    database.close()
    kept = {
        name: [{"attempts": "faults"}.get(column.name, column.name) for column in table.columns]
        for name, table in was.tables.items()
    }
    before = only(kept, rows(lived))
    assert len(before["event"]) > 5
    for _ in range(2):
        Ledger(old).close()
        assert only(kept, rows(old)) == before
    ledger = Ledger(old)
    with ledger.read() as session:
        requests_of_old = session.query(Request).all()
        assert requests_of_old
        assert all(check_counts(session, request) and request.counts for request in requests_of_old)
        assert all(RolloutPlan.model_validate(request.plan) == RolloutPlan() for request in requests_of_old)
    ledger.close()
    with pytest.raises(IntegrityError, match="append-only"):
        execute(old, "DELETE FROM event")


def only(columns: dict[str, list[str]], found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """These columns of the rows of these tables."""
    all_columns = {table: [column.name for column in Base.metadata.tables[table].columns] for table in columns}
    places = {table: [all_columns[table].index(name) for name in names] for table, names in columns.items()}
    return {table: [[row[place] for place in places[table]] for row in found[table]] for table in columns}


def test_a_newer_ledger_is_refused_and_left_alone(lived: str, tmp_path: Path) -> None:
    execute(lived, "UPDATE ledger_version SET version_num = '9999'")
    before = rows(lived)
    with pytest.raises(LedgerVersionError, match=r"newer than this software \(revision 9999") as caught:
        Ledger(lived)
    assert "\n" not in str(caught.value)
    with pytest.raises(LedgerVersionError, match="newer"):
        back_up(config(lived, tmp_path), tmp_path / "b")
    assert rows(lived) == before


def test_tables_that_are_no_ledger_are_refused(new_url: NewUrl) -> None:
    url = new_url()
    execute(url, "CREATE TABLE event (id INTEGER PRIMARY KEY, title VARCHAR)", "INSERT INTO event VALUES (1, 'party')")
    with pytest.raises(LedgerVersionError, match="no ledger"):
        Ledger(url)
    execute(url, "UPDATE event SET title = 'still mine'")


def test_a_step_that_fails_leaves_the_old_ledger(new_url: NewUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_url()
    unversioned(url)
    real = migrations.upgrade

    def fail(connection: object, revision: str = "head") -> None:
        real(connection, revision)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(migrations, "upgrade", fail)
    with pytest.raises(KeyboardInterrupt):
        Ledger(url)
    database = Database(url)
    with database.reader.begin() as connection:
        assert not migrations._stamped(connection)
        assert migrations.revision_of(connection, "x") == "0001"
    database.close()
    monkeypatch.undo()
    Ledger(url).close()


def test_many_that_open_a_new_ledger_at_once(new_url: NewUrl) -> None:
    url = new_url()
    with ThreadPoolExecutor(6) as pool:
        for ledger in pool.map(lambda _: Ledger(url), range(6)):
            ledger.close()
    assert rows(url)["event"] == []


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_new_ledger_waits_for_who_is_making_it(tmp_path: Path, begin: str) -> None:
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None, check_same_thread=False)
    other.execute(begin)
    soon = threading.Timer(0.3, other.execute, ("COMMIT",))
    soon.start()
    Ledger(tmp_path / "ledger.sqlite").close()
    soon.join()
    other.close()


def test_a_new_ledger_that_somebody_keeps_locked_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_BUSY_SECONDS", 0.2)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(CoordinatorError, match=r"cannot use the ledger .*ledger.sqlite: database is locked$"):
        Ledger(tmp_path / "ledger.sqlite")
    other.close()


# The history


CHANGES = [
    "UPDATE event SET detail = 'other' WHERE id = {id}",
    "UPDATE event SET id = id + 1000000 WHERE id = {id}",
    "DELETE FROM event WHERE id = {id}",
    "DELETE FROM event",
]
ONLY = {
    "sqlite": [
        "INSERT OR REPLACE INTO event SELECT id, at, kind, 'forged', device_id, request_id, detail, '' "
        "FROM event WHERE id = {id}",
        "UPDATE OR REPLACE event SET id = 1 WHERE id = {id}",
    ],
    "postgresql": [
        "TRUNCATE event",
        "TRUNCATE event CASCADE",
        "INSERT INTO event SELECT id, at, kind, 'forged', device_id, request_id, detail, '' FROM event WHERE id = {id} "
        "ON CONFLICT (id) DO UPDATE SET fleet = 'forged'",
    ],
}


def test_no_statement_changes_the_history(lived: str) -> None:
    before = rows(lived)["event"]
    assert len(before) > 8
    for statement in CHANGES + ONLY[lived.partition(":")[0].partition("+")[0]]:
        for row in (before[0], before[-1]):
            with pytest.raises(IntegrityError, match="append-only"):
                execute(lived, statement.format(id=row[0]))
    assert rows(lived)["event"] == before
    with pytest.raises(IntegrityError), Ledger(lived).write() as session:
        session.scalars(select(Event)).first().detail = "other"  # type: ignore[union-attr]


@given(st.lists(st.sampled_from(["append", "update", "delete", "rolled back"]), max_size=12))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_history_is_append_only(new_url: NewUrl, actions: list[str]) -> None:
    ledger = Ledger(new_url())
    expected: list[str] = []

    def act(action: str, name: str) -> None:
        with ledger.write() as session:
            ledger.record(session, name)
            if action == "update":
                session.flush()
                session.execute(update(Event).where(Event.kind == name).values(kind="x"))
            elif action == "delete":
                session.flush()
                session.execute(delete(Event).where(Event.kind == name))
            elif action == "rolled back":
                raise RuntimeError

    try:
        for index, action in enumerate(actions):
            name = f"e{index}"
            if action == "append":
                act(action, name)
                expected.append(name)
            else:
                with pytest.raises((IntegrityError, RuntimeError)):
                    act(action, name)
            with ledger.read() as session:
                assert list(session.scalars(select(Event.kind).order_by(Event.id))) == expected
    finally:
        ledger.close()


# Concurrency


def test_two_coordinators_never_lease_the_same_execution(new_url: NewUrl) -> None:
    url = new_url()
    fleet = Fleet.make(url, 3)
    for _ in range(5):
        fleet.order()
    others = [Ledger(url, lambda: fleet.now) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        given_out = list(pool.map(lambda ledger: rollout.lease(ledger, fleet.nodes), others))
    ids = [assignment.execution_id for given in given_out for assignment in given]
    assert len(ids) == len(set(ids)) == 3  # a device gets one thing at a time
    assert [e.kind for e in fleet.events()].count("execution.in_progress") == 3
    for ledger in [*others, fleet.ledger]:
        ledger.close()


def test_sequence_numbers_are_never_given_twice(new_url: NewUrl) -> None:
    url = new_url()
    fleet = Fleet.make(url, 1)
    ledgers = [Ledger(url) for _ in range(4)]
    order = requests.ForgetOrder("yard", "bird")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: requests.create_request(ledgers[i % 4], order, SIGNER), range(20)))
    [row] = rows(url)["fleet"]
    assert row[3] == 20
    for ledger in [*ledgers, fleet.ledger]:
        ledger.close()


def test_a_row_that_someone_holds_is_leased_later(tmp_path: Path) -> None:
    # SQLite has no row locks.
    url = databases.new_url("postgresql", tmp_path)
    fleet = Fleet.make(url, 2)
    request_id = fleet.order()
    held = fleet.execution(request_id, 0).id
    other = Database(url)
    with other._engine.begin() as connection:
        connection.execute(select(Execution.id).where(Execution.id == held).with_for_update())
        started = time.monotonic()
        assert set(fleet.lease(0, 1)) == {1}
        assert time.monotonic() - started < 20
    assert set(fleet.lease(0, 1)) == {0}
    other.close()
    fleet.ledger.close()


def test_a_reader_sees_one_moment(new_url: NewUrl) -> None:
    ledger = Ledger(new_url())
    with ledger.read() as session:
        count = select(func.count()).select_from(FleetRow)
        assert session.scalar(count) == 0
        enrol.create_fleet(ledger, "yard")
        assert session.scalar(count) == 0
    with ledger.read() as session:
        assert session.scalar(count) == 1
    ledger.close()


def test_only_one_daemon_per_postgresql_ledger(new_url: NewUrl) -> None:
    url = new_url()
    first, second = Ledger(url), Ledger(url)
    with first.claimed():
        if url.startswith("postgresql"):
            with pytest.raises(ConflictError, match="another coordinator"), second.claimed():
                pass
    with second.claimed():
        pass
    first.close()
    second.close()


def test_what_a_device_says_fits_both_databases(new_url: NewUrl) -> None:
    fleet = Fleet.make(new_url(), 1)
    request_id = fleet.order()
    fleet.lease(0)
    state = fleet.report(request_id, software_version="v" * 500, model_digest_after="1" * 500, detail="a\0b")
    assert state == "SUCCEEDED"
    execution = fleet.execution(request_id)
    assert execution.detail == "a\N{REPLACEMENT CHARACTER}b"
    assert len(execution.device.software_version) == len(execution.device.model_digest) == 64
    for options in ({"idempotency_key": "k" * 65}, {"method": "m" * 64}):
        with pytest.raises(CoordinatorError, match="are the most"):
            fleet.order(**options)
    fleet.ledger.close()


# Kills


def write_until_killed(url: str, done: Pipe) -> None:
    """Order, lease and report without end; says what was committed."""
    fleet = Fleet(Ledger(url), nodes=[2**64 - 100, 2**64 - 99])
    with fleet.ledger.read() as session:
        known = find_fleet(session, "yard") is not None
    if not known:
        fleet = Fleet.make(url, 2)
    done.send("ready")
    while True:
        fleet.now = time.time()
        request_id = fleet.order()
        done.send(("ordered", request_id))
        rollout.lease(fleet.ledger, fleet.nodes)
        fleet.report(request_id, 0)
        fleet.report(request_id, 1)
        done.send(("completed", request_id))


@pytest.mark.timeout(280)
def test_a_killed_writer_loses_nothing(new_url: NewUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_url()
    # Python 3.11's fork server looks for what it preloads without our sys.path.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance = random.Random(0)  # noqa: S311
    promised: dict[str, set[str]] = {"ordered": set(), "completed": set()}
    rounds = 20
    for _ in range(rounds):
        ours, theirs = context.Pipe(duplex=False)
        writer = context.Process(target=write_until_killed, args=(url, theirs), daemon=True)
        writer.start()
        theirs.close()
        assert ours.recv() == "ready"
        for _ in range(chance.randrange(8)):
            what, request_id = ours.recv()
            promised[what].add(request_id)
        # Then anywhere in the next transactions.
        time.sleep(chance.uniform(0.0, 0.1))
        writer.kill()
        writer.join()
        try:
            while True:
                what, request_id = ours.recv()
                promised[what].add(request_id)
        except EOFError:
            pass
        check_history(url, promised)
    assert len(promised["completed"]) >= rounds


def check_history(url: str, promised: dict[str, set[str]]) -> None:
    """What was promised is there, what is there is told by the history, and nothing is half done."""
    if url.startswith("sqlite"):
        with sqlite3.connect(str(parse_url(url).database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    ledger = Ledger(url)
    with ledger.read() as session:
        requests = {r.id: r.state for r in session.scalars(select(Request))}
        assert promised["ordered"] <= set(requests)
        assert promised["completed"] <= {id_ for id_, state in requests.items() if state == "COMPLETED"}
        assert session.scalar(select(FleetRow.sequence)) == len(requests)
        assert told(session, "request.created") == sorted(requests)
        assert told(session, "request.completed") == sorted(i for i, state in requests.items() if state == "COMPLETED")
        executions = session.execute(select(Execution.request_id, Execution.state, Execution.receipt_envelope)).all()
        assert sorted(e.request_id for e in executions) == sorted(2 * list(requests))
        succeeded = [e for e in executions if e.state == "SUCCEEDED"]
        assert told(session, "execution.succeeded") == sorted(e.request_id for e in succeeded)
        assert all((e.receipt_envelope is not None) == (e.state == "SUCCEEDED") for e in executions)
    ledger.close()


def told(session: Session, kind: str) -> list[str]:
    return sorted(session.scalars(select(Event.request_id).where(Event.kind == kind)))


# Backups


def config(url: str, home: Path) -> CoordinatorConfig:
    home.mkdir(exist_ok=True)
    return CoordinatorConfig(ledger=LedgerConfig(url=url), home=home)


@pytest.fixture
def targets(new_url: NewUrl, tmp_path: Path) -> CoordinatorConfig:
    return config(new_url(), tmp_path / "target")


def without_the_last_event(found: dict[str, list[tuple[object, ...]]]) -> dict[str, list[tuple[object, ...]]]:
    assert found["event"][-1][2] == "ledger.restored"
    return found | {"event": found["event"][:-1]}


def test_a_backup_brings_everything_back(lived: str, targets: CoordinatorConfig, tmp_path: Path) -> None:
    out = tmp_path / "ledger.backup"
    done = back_up(config(lived, tmp_path / "source"), out)
    assert out.stat().st_mode & 0o777 == 0o600
    assert restore(targets, out) == done
    assert without_the_last_event(rows(targets.ledger.url)) == rows(lived)
    # It lives on: new rows get new numbers, the history is guarded, and the same work is still to be done.
    fleet = Fleet(Ledger(targets.ledger.url), nodes=[2**64 - 100, 2**64 - 99])
    fleet.add_device(2)
    enrol.create_fleet(fleet.ledger, "barn")
    assert len(fleet.request(fleet.order()).executions) == 3
    with pytest.raises(IntegrityError, match="append-only"):
        execute(targets.ledger.url, "DELETE FROM event")
    fleet.ledger.close()


def test_a_backup_moves_a_ledger_to_the_other_database(lived: str, tmp_path: Path) -> None:
    import databases

    other = databases.new_url("postgresql" if lived.startswith("sqlite") else "sqlite", tmp_path)
    back_up(config(lived, tmp_path / "source"), tmp_path / "b")
    restore(config(other, tmp_path / "target"), tmp_path / "b")
    assert without_the_last_event(rows(other)) == rows(lived)


def test_a_backup_of_an_older_ledger_is_upgraded(new_url: NewUrl, targets: CoordinatorConfig, tmp_path: Path) -> None:
    old = new_url()
    unversioned(old)
    execute(old, "INSERT INTO fleet (name, created_at, sequence) VALUES ('yard', 1.5, 7)")
    assert back_up(config(old, tmp_path / "source"), tmp_path / "b").revision == "0001"
    restore(targets, tmp_path / "b")
    assert rows(targets.ledger.url)["fleet"] == [(1, "yard", 1.5, 7)]
    with pytest.raises(IntegrityError, match="append-only"):
        execute(targets.ledger.url, "DELETE FROM event")


def test_a_backup_under_load_shows_one_moment(new_url: NewUrl, targets: CoordinatorConfig, tmp_path: Path) -> None:
    url = new_url()
    fleet = Fleet.make(url, 2)
    with ThreadPoolExecutor(1) as pool:
        orders = pool.submit(lambda: [fleet.order() for _ in range(60)])
        copies = []
        while not orders.done():
            copies.append(tmp_path / f"{len(copies)}.backup")
            back_up(config(url, tmp_path / "source"), copies[-1])
    for copy in copies[:: max(1, len(copies) // 4)]:
        restore(targets, copy, force=True)
        check_history(targets.ledger.url, {"ordered": set(), "completed": set()})
    fleet.ledger.close()


def test_restore_refuses(lived: str, tmp_path: Path) -> None:
    home = config(lived, tmp_path / "home")
    out = tmp_path / "ledger.backup"
    back_up(home, out)
    before = rows(lived)
    with pytest.raises(ConflictError, match=r"holds \d+ rows.*--force"):
        restore(home, out)
    lock = HomeLock(home.home)
    lock.acquire()
    with pytest.raises(AlreadyRunningError):
        restore(home, out, force=True)
    lock.release()
    ledger = Ledger(lived)
    if lived.startswith("postgresql"):
        with ledger.claimed(), pytest.raises(ConflictError, match="in use"):
            restore(home, out, force=True)
    ledger.close()
    with pytest.raises(ConflictError, match="exists already"):
        back_up(home, out)
    assert rows(lived) == before
    restore(home, out, force=True)
    assert without_the_last_event(rows(lived)) == before


def test_damaged_backups_change_nothing(lived: str, tmp_path: Path) -> None:
    home = config(lived, tmp_path / "home")
    out = tmp_path / "ledger.backup"
    back_up(home, out)
    before = rows(lived)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    chance = random.Random(1)  # noqa: S311
    damaged = [whole[:n] for n in (0, 1, len(lines[0]), len(whole) // 2, len(whole) - len(lines[-1]), len(whole) - 2)]
    damaged += [b"".join(lines[:3] + lines[4:]), b"".join([*lines[:3], lines[4], lines[3], *lines[5:]])]
    damaged += [whole.replace(b'"sequence":3', b'"sequence":4'), b"garbage\n" * 3, b"{}\n{}\n"]
    for _ in range(20):
        place = chance.randrange(len(whole) - 1)
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in damaged:
        assert data != whole
        out.write_bytes(data)
        with pytest.raises(BackupError) as caught:
            restore(home, out, force=True)
        assert "\n" not in str(caught.value)
    out.write_bytes(re.sub(rb'"revision":"\d+"', b'"revision":"9999"', whole))
    with pytest.raises(BackupError):
        restore(home, out, force=True)
    with pytest.raises(BackupError, match="cannot read"):
        restore(home, tmp_path / "none", force=True)
    assert rows(lived) == before


def test_a_backup_of_nothing(new_url: NewUrl, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="there is no ledger"):
        back_up(config(new_url(), tmp_path / "home"), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert list(tmp_path.glob(".b*")) == []


# Where it is


@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://u:secret@h/d", "sqlite://", "sqlite:///relative", "postgresql+psycopg2://u:secret@h/d"]
)
def test_urls_that_are_no_ledger(url: str) -> None:
    with pytest.raises(ConfigError, match="url") as caught:
        Ledger(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(CoordinatorError, match="cannot use the ledger") as caught:
        Ledger("postgresql://u:secret@127.0.0.1:1/d")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
