"""Tokens in the ledger: made, listed, revoked, each change an event in the history.

A token is 256 random bits in URL-safe base64. The ledger keeps its SHA-256 alone: with that much entropy there is
nothing to guess, so a slow password hash would only cost time on every call.
"""

import hashlib
import secrets

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from clue_coordinator import actor
from clue_coordinator.errors import ConflictError, UsageError
from clue_coordinator.ledger import Ledger
from clue_coordinator.models import Token
from clue_coordinator.roles import Role
from clue_protocol.documents import check_name
from clue_protocol.errors import DocumentError

LOCAL_ADMIN = "local-admin"
# Who acts where no call does: a command on the coordinator's own machine.
LOCAL = "local"
_SHORTEST_SECONDS, _LONGEST_SECONDS = 60.0, 3660 * 86400.0


def new_secret() -> str:
    """A new token."""
    return secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    """What the ledger keeps of a token: its SHA-256, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(ledger: Ledger, name: str, role: Role, lifetime_seconds: float = 0.0) -> tuple[Token, str]:
    """Make a token; returns its row and the token itself, which is kept nowhere.

    Args:
        ledger: where its hash is kept.
        name: name of the token and of whoever uses it, never given again.
        role: what it may do.
        lifetime_seconds: it expires after that; 0 for never.

    Raises:
        UsageError: bad name or lifetime.
        ConflictError: there is, or was, a token of that name.
    """
    try:
        check_name("token", name)
    except DocumentError as error:
        raise UsageError(str(error)) from None
    if lifetime_seconds != 0 and not _SHORTEST_SECONDS <= lifetime_seconds <= _LONGEST_SECONDS:
        raise UsageError(f"a token must expire after 1 minute to 10 years, or never; got {lifetime_seconds:g} s")
    secret = new_secret()
    expires_at = ledger.clock() + lifetime_seconds if lifetime_seconds else None
    try:
        with ledger.write() as session:
            return _add(ledger, session, name, role, secret, expires_at), secret
    except IntegrityError:
        raise ConflictError(
            f"there is or was a token '{name}': choose another name, the history keeps this one"
        ) from None


def list_tokens(ledger: Ledger) -> list[Token]:
    """All tokens by name, expired and revoked ones included."""
    with ledger.read() as session:
        return list(session.scalars(select(Token).order_by(Token.name)))


def revoke_token(ledger: Ledger, name: str) -> Token:
    """Make a token useless for ever; one that is revoked already stays as it is.

    Raises:
        UsageError: there is no such token.
        ConflictError: it is the last admin token that can be used.
    """
    with ledger.write() as session:
        token = session.scalar(select(Token).where(Token.name == name))
        if token is None:
            raise UsageError(f"there is no token '{name}': see 'clue-coordinator token list'")
        if token.revoked_at is not None:
            return token
        now = ledger.clock()
        others = select(Token.id).where(Token.role == Role.ADMIN, Token.id != token.id, _usable(now)).limit(1)
        if token.role == Role.ADMIN and session.scalar(others) is None:
            raise ConflictError(f"'{name}' is the last usable admin token: make another admin token first")
        token.revoked_at = now
        ledger.record(session, "token.revoked", detail=f"{token.name} ({token.role})")
        return token


def install_local_admin(ledger: Ledger, secret: str) -> str:
    """Make ``secret``, the token in the coordinator's home folder, an admin token; returns its name."""
    with ledger.write() as session, actor.acting(actor.current() or LOCAL):
        # The ledger may have served another home folder before.
        names = set(session.scalars(select(Token.name).where(Token.name.startswith(LOCAL_ADMIN))))
        name, number = LOCAL_ADMIN, 1
        while name in names:
            number += 1
            name = f"{LOCAL_ADMIN}-{number}"
        return _add(ledger, session, name, Role.ADMIN, secret, None).name


def any_token(ledger: Ledger) -> bool:
    """False for a ledger of before there were tokens, and for a new one."""
    with ledger.read() as session:
        return session.scalar(select(Token.id).limit(1)) is not None


def is_usable(ledger: Ledger, secret: str) -> bool:
    """True if the ledger knows the token, and it is neither expired nor revoked."""
    query = select(Token.id).where(Token.digest == digest_of(secret), _usable(ledger.clock()))
    with ledger.read() as session:
        return session.scalar(query) is not None


def note_use(ledger: Ledger, used: dict[int, float]) -> None:
    """Write when tokens were last used, {row: time}."""
    with ledger.write() as session:
        for token in session.scalars(select(Token).where(Token.id.in_(used))):
            token.last_used_at = max(token.last_used_at or 0.0, used[token.id])


def _usable(now: float) -> ColumnElement[bool]:
    return Token.revoked_at.is_(None) & or_(Token.expires_at.is_(None), Token.expires_at > now)


def _add(ledger: Ledger, session: Session, name: str, role: Role, secret: str, expires_at: float | None) -> Token:
    token = Token(
        name=name,
        role=role,
        digest=digest_of(secret),
        created_at=ledger.clock(),
        created_by=actor.current() or LOCAL,
        expires_at=expires_at,
    )
    session.add(token)
    session.flush()
    ledger.record(session, "token.created", detail=f"{name} ({role})")
    return token
