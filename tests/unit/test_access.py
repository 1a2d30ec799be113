"""Who may call the operator API: tokens, roles, their end; the server over real TLS."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from operator_server import House, bearer, house
from sqlalchemy import select, update

from clue_coordinator import tokens
from clue_coordinator.access import USE_SECONDS, Access, Refused
from clue_coordinator.client import forget_call
from clue_coordinator.errors import ConflictError, CoordinatorError, UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Event, Token
from clue_coordinator.roles import METHODS, Role, needed_role, unassigned_methods
from clue_protocol.v1 import operator_pb2 as pb

NewUrl = Callable[[], str]
SERVICE = pb.DESCRIPTOR.services_by_name["OperatorService"]


@pytest.fixture
def home(tmp_path: Path, new_url: NewUrl) -> Iterator[House]:
    """Runs on both databases."""
    with house(tmp_path / "home", new_url()) as found:
        yield found


@pytest.fixture
def sqlite_home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path / "home") as found:
        yield found


@pytest.fixture
def ledger(new_url: NewUrl) -> Iterator[Ledger]:
    found = Ledger(new_url())
    yield found
    found.close()


def events(ledger: Ledger, kind: str) -> list[tuple[str, str]]:
    with ledger.read() as session:
        rows = session.scalars(select(Event).where(Event.kind == kind).order_by(Event.id))
        return [(event.actor, event.detail) for event in rows]


# Roles


def test_every_method_has_a_role() -> None:
    assert unassigned_methods() == []


def test_a_method_without_a_role_is_for_admins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(METHODS, "ListFleets")
    assert unassigned_methods() == ["ListFleets"]
    assert needed_role("/clue.v1.OperatorService/ListFleets") is Role.ADMIN
    assert needed_role("/other.Service/Read") is Role.ADMIN


def test_which_role_includes_which() -> None:
    included = {role: {other for other in Role if role.includes(other)} for role in Role}
    assert included == {
        Role.VIEWER: {Role.VIEWER},
        Role.OPERATOR: {Role.VIEWER, Role.OPERATOR},
        Role.APPROVER: {Role.VIEWER, Role.APPROVER},
        Role.ADMIN: set(Role),
    }


@pytest.mark.parametrize("role", Role)
def test_each_role_reaches_its_methods_and_no_others(sqlite_home: House, role: Role) -> None:
    """Every method of the service over the wire: refused by role, or let through to the handler."""
    token = sqlite_home.token(role)
    with sqlite_home.channel() as channel:
        for method in SERVICE.methods:
            path = f"/{SERVICE.full_name}/{method.name}"
            call = channel.unary_stream(path)(b"", metadata=bearer(token), timeout=15)
            try:
                list(call)
                code, line = grpc.StatusCode.OK, ""
            except grpc.RpcError as error:
                code, line = error.code(), error.details()
            allowed = role is Role.ADMIN or METHODS[method.name] in (Role.VIEWER, role)
            assert (code != grpc.StatusCode.PERMISSION_DENIED) == allowed, method.name
            # Empty requests: what is let through succeeds, or the handler says what is wrong with it.
            assert code in (
                {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
                if allowed
                else {grpc.StatusCode.PERMISSION_DENIED}
            ), (method.name, line)
            if not allowed:
                phrase = f"'a-{role}' is {'a' if role is Role.VIEWER else 'an'} {role}"
                assert line == f"{method.name} needs the role {METHODS[method.name]}, and {phrase}"


# Tokens in the ledger


def test_a_token_is_kept_as_its_hash_alone(ledger: Ledger) -> None:
    token, secret = tokens.create_token(ledger, "ci", Role.OPERATOR)
    assert len(secret) == 43  # 256 bits in base64
    with ledger.read() as session:
        row = session.scalar(select(Token))
        assert row is not None
        assert row.digest == hashlib.sha256(secret.encode()).hexdigest()
        assert secret not in {str(value) for value in vars(row).values()}
    assert (token.role, token.created_by, token.expires_at) == ("operator", "local", None)
    assert events(ledger, "token.created") == [("", "ci (operator)")]


@pytest.mark.parametrize("name", ["", "a b", "-x", "ü", "a" * 64])
def test_bad_names(ledger: Ledger, name: str) -> None:
    with pytest.raises(UsageError, match="token name"):
        tokens.create_token(ledger, name, Role.VIEWER)


@pytest.mark.parametrize("seconds", [-1.0, 59.0, 1e12, float("nan"), float("inf")])
def test_bad_lifetimes(ledger: Ledger, seconds: float) -> None:
    with pytest.raises(UsageError, match="1 minute to 10 years"):
        tokens.create_token(ledger, "x", Role.VIEWER, seconds)
    assert tokens.list_tokens(ledger) == []


def test_a_name_is_given_once(ledger: Ledger) -> None:
    tokens.create_token(ledger, "root", Role.ADMIN)
    tokens.create_token(ledger, "x", Role.VIEWER)
    tokens.revoke_token(ledger, "x")
    with pytest.raises(ConflictError, match="'x'"):
        tokens.create_token(ledger, "x", Role.ADMIN)
    assert [token.role for token in tokens.list_tokens(ledger)] == ["admin", "viewer"]


def test_the_last_usable_admin_stays(ledger: Ledger) -> None:
    now = 1_000_000.0
    ledger.clock = lambda: now
    tokens.create_token(ledger, "a", Role.ADMIN)
    tokens.create_token(ledger, "b", Role.ADMIN, 60.0)
    tokens.create_token(ledger, "o", Role.OPERATOR)
    with pytest.raises(UsageError, match="no token 'c'"):
        tokens.revoke_token(ledger, "c")
    now += 61.0  # b has expired
    with pytest.raises(ConflictError, match="last usable admin"):
        tokens.revoke_token(ledger, "a")
    tokens.revoke_token(ledger, "o")
    tokens.create_token(ledger, "c", Role.ADMIN)
    tokens.revoke_token(ledger, "a")
    tokens.revoke_token(ledger, "a")  # changes nothing
    with pytest.raises(ConflictError, match="last usable admin"):
        tokens.revoke_token(ledger, "c")
    assert [detail for _, detail in events(ledger, "token.revoked")] == ["o (operator)", "a (admin)"]


def test_two_admins_who_revoke_each_other_at_once(ledger: Ledger) -> None:
    tokens.create_token(ledger, "a", Role.ADMIN)
    tokens.create_token(ledger, "b", Role.ADMIN)
    start, refused = threading.Barrier(2), []

    def revoke(name: str) -> None:
        start.wait()
        try:
            tokens.revoke_token(ledger, name)
        except ConflictError:
            refused.append(name)

    threads = [threading.Thread(target=revoke, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert sum(token.revoked_at is None for token in tokens.list_tokens(ledger)) == 1


def test_another_home_of_the_same_ledger_gets_a_name_of_its_own(ledger: Ledger) -> None:
    assert tokens.install_local_admin(ledger, "s" * 43) == "local-admin"
    assert tokens.install_local_admin(ledger, "t" * 43) == "local-admin-2"
    assert tokens.is_usable(ledger, "s" * 43)
    assert tokens.is_usable(ledger, "t" * 43)
    assert not tokens.is_usable(ledger, "u" * 43)


# Access, by a clock that the test turns


def test_a_revocation_in_another_process_acts_within_two_seconds(ledger: Ledger) -> None:
    _, secret = tokens.create_token(ledger, "x", Role.VIEWER)
    at = 100.0
    access = Access(ledger, monotonic=lambda: at)
    path = "/clue.v1.OperatorService/ListFleets"
    caller = access.caller(f"Bearer {secret}", path, "peer")
    with ledger.write() as session:
        session.execute(update(Token).values(revoked_at=1.0))
    assert access.valid(caller)  # from memory
    at += 1.0
    assert not access.valid(caller)
    with pytest.raises(Refused, match="expired or revoked"):
        access.caller(f"Bearer {secret}", path, "peer")


def test_an_expiry_needs_no_look_at_the_ledger(ledger: Ledger) -> None:
    now = 1_000_000.0
    ledger.clock = lambda: now
    _, secret = tokens.create_token(ledger, "x", Role.VIEWER, 60.0)
    access = Access(ledger, monotonic=lambda: 0.0)
    caller = access.caller(f"Bearer {secret}", "/clue.v1.OperatorService/ListFleets", "peer")
    now += 59.9
    assert access.valid(caller)
    now += 0.1
    assert not access.valid(caller)


def test_use_is_written_at_most_once_a_minute(ledger: Ledger) -> None:
    now = 1_000_000.0
    ledger.clock = lambda: now
    _, secret = tokens.create_token(ledger, "x", Role.VIEWER)
    access = Access(ledger)

    def use(who: Access) -> float | None:
        who.caller(f"Bearer {secret}", "/clue.v1.OperatorService/ListFleets", "peer")
        who.write_uses()
        return tokens.list_tokens(ledger)[0].last_used_at

    version = ledger.version
    assert use(access) == now
    for _ in range(5):
        now += 10.0
        assert use(access) == 1_000_000.0
    assert use(Access(ledger)) == 1_000_000.0  # after a restart too
    assert ledger.version == version + 1
    now = 1_000_000.0 + USE_SECONDS
    assert use(access) == now


# Over the wire


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic x", "Bearer " + "x" * 5000, "revoked", "expired", "two"],
)
def test_no_valid_token(sqlite_home: House, authorization: str | None) -> None:
    home = sqlite_home
    good = home.token(Role.VIEWER, "good")
    revoked = home.token(Role.VIEWER, "revoked")
    tokens.revoke_token(home.ledger, "revoked")
    expired = home.token(Role.VIEWER, "expired", 60.0)
    with home.ledger.write() as session:
        session.execute(update(Token).where(Token.name == "expired").values(expires_at=1.0))
    metadata = {
        None: [],
        "revoked": bearer(revoked),
        "expired": bearer(expired),
        "two": bearer(good) + bearer(good),
    }.get(authorization, [("authorization", str(authorization))])
    lines = set()
    with home.stub() as stub:
        for call in (
            lambda: stub.ListFleets(pb.ListFleetsRequest(), metadata=metadata, timeout=15),
            lambda: list(stub.WatchRequest(pb.GetRequestRequest(request_id="x"), metadata=metadata, timeout=15)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            lines.add(caught.value.details())
        assert stub.ListFleets(pb.ListFleetsRequest(), metadata=bearer(good), timeout=15).fleets
    [line] = lines
    # The same for all bad tokens: it says nothing of what the ledger holds.
    bad = "the operator token is not valid: it is unknown, expired or revoked"
    missing = authorization in (None, "", "Bearer", "Bearer ", "Basic x", "two")
    assert line == ("this call needs a token: send 'authorization: Bearer TOKEN'" if missing else bad)


def test_the_history_says_who_did_it(home: House) -> None:
    secret = home.token(Role.ADMIN, "ann")
    with home.client(secret) as ann:
        made = ann.create_token("bob", "operator", 3600.0)
        assert (made.token.created_by, made.token.role) == ("ann", pb.ROLE_OPERATOR)
        ann.create_fleet("barn")
        with home.client(made.secret) as bob:
            view = bob.forget(forget_call("yard", "bird"))
            assert view.created_by == "bob"
            with pytest.raises(CoordinatorError, match="CreateFleet needs the role admin, and 'bob' is an operator"):
                bob.create_fleet("x")
        assert ann.revoke_token("bob").HasField("revoked_at")
    assert events(home.ledger, "request.created")[0][0] == "bob"
    assert events(home.ledger, "fleet.created") == [("", ""), ("ann", "")]
    assert ("ann", "bob (operator)") in events(home.ledger, "token.created")
    assert events(home.ledger, "token.revoked")[0] == ("ann", "bob (operator)")


def test_errors_of_the_token_methods(sqlite_home: House) -> None:
    with sqlite_home.client(sqlite_home.token(Role.ADMIN, "ann")) as ann, sqlite_home.stub() as stub:
        with pytest.raises(UsageError, match="there is no role 'boss'"):
            ann.create_token("x", "boss")
        with pytest.raises(UsageError, match="token name"):
            ann.create_token("x y", "viewer")
        with pytest.raises(UsageError, match="no token 'x'"):
            ann.revoke_token("x")
        metadata = bearer((sqlite_home.config.operator_token).read_text().strip())
        for role in (0, 99):
            with pytest.raises(grpc.RpcError) as caught:
                stub.CreateToken(pb.CreateTokenRequest(name="x", role=role), metadata=metadata, timeout=15)  # type: ignore[arg-type]
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        ann.revoke_token("local-admin")
        with pytest.raises(CoordinatorError, match="last usable admin"):
            ann.revoke_token("ann")


def test_an_open_stream_ends_with_its_token(home: House) -> None:
    request = home.fleet.order()
    secret = home.token(Role.VIEWER, "watcher")
    with home.client(secret) as client:
        views = client.watch_request(request)
        assert next(views).request_id == request
        tokens.revoke_token(home.ledger, "watcher")
        started = time.monotonic()
        with pytest.raises(CoordinatorError, match="expired or was revoked"):
            next(views)
        assert time.monotonic() - started < 15.0


def test_a_watched_request_shows_every_state(home: House) -> None:
    request = home.fleet.order()
    with home.client(home.token(Role.VIEWER)) as client:
        views = client.watch_request(request)
        assert next(views).state == pb.REQUEST_STATE_SCHEDULED
        home.fleet.lease(0)
        assert next(views).state == pb.REQUEST_STATE_IN_PROGRESS
        home.fleet.report(request, 0)
        last = list(views)
        assert last[-1].state == pb.REQUEST_STATE_COMPLETED
