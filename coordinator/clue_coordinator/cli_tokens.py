"""``clue-coordinator token``: who may use the operator API."""

import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clue_coordinator.cli_options import Home, JsonFlag, home_folder, operator_client
from clue_coordinator.config import load_config
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_coordinator.roles import Role
from clue_protocol.v1 import operator_pb2 as pb

token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens of the operator API.")

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="Whose token it is; the history shows this name.")],
    role: Annotated[Role, typer.Option("--role", help="What it may do.")],
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="It ends after that: 12h, 30d, 8w [default: never].")
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write it to this new file, for its owner alone, and print nothing.")
    ] = None,
    home: Home = None,
) -> None:
    """Make a token. It is shown this once: the coordinator keeps its hash alone."""
    seconds = parse_lifetime(expires) if expires else 0.0
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: {out.parent} is not a folder")
    with operator_client(home) as client:
        if out is None:
            print(client.create_token(name, role, seconds).secret)
            print(f"'{name}' is {role.phrase}; keep this line, it is not shown again", file=sys.stderr)
            return
        try:
            # Made first, and never over another file: a token that cannot be kept is lost.
            out.touch(0o600, exist_ok=False)
        except FileExistsError:
            raise UsageError(f"--out {out} exists already: choose another file") from None
        try:
            answer = client.create_token(name, role, seconds)
        except BaseException:
            out.unlink(missing_ok=True)
            raise
        try:
            out.write_text(f"{answer.secret}\n", encoding="ascii")
        except OSError as error:
            with suppress(CoordinatorError):
                client.revoke_token(name)
            out.unlink(missing_ok=True)
            raise CoordinatorError(f"cannot write {out}: {error.strerror}; the token is revoked again") from None
    print(f"'{name}' is {role.phrase}; its token is in {out}")


@token_app.command("list")
def token_list(home: Home = None, as_json: JsonFlag = False) -> None:
    """All tokens, expired and revoked ones included."""
    with operator_client(home) as client:
        tokens = client.list_tokens()
    rows = [token_data(token) for token in tokens]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("token", "role", "state", "made by", "expires", "last used", header_style="bold")
    for row in rows:
        expires, used = (str(row[key] or "never")[:16].replace("T", " ") for key in ("expires_at", "last_used_at"))
        table.add_row(str(row["name"]), str(row["role"]), str(row["state"]), str(row["created_by"]), expires, used)
    Console().print(table)


@token_app.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.")],
    home: Home = None,
) -> None:
    """Make a token useless, at once and for ever."""
    with operator_client(home) as client:
        client.revoke_token(name)
    print(f"token '{name}' is revoked")


@token_app.command("recover")
def token_recover(home: Home = None) -> None:
    """Make a new admin token in the coordinator's own home, which must be stopped.

    For the day when no admin token is left. It replaces operator.token; whoever can write that folder could do all this
    anyway. Other tokens stay as they are.
    """
    from clue_coordinator.setup import recover_local_admin

    config = load_config(home_folder(home))
    print(f"'{recover_local_admin(config)}' is an admin; its token is in {config.operator_token}")


def parse_lifetime(text: str) -> float:
    """Seconds in ``90m``, ``12h``, ``30d`` or ``8w``; UsageError otherwise."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]+)?)([mhdw])", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--expires takes a time such as 90m, 12h, 30d or 8w, got '{text}'")
    return float(match[1]) * _UNITS[match[2]]


def token_data(token: pb.Token) -> dict[str, object]:
    """A token as plain data for JSON; times in UTC (RFC 3339), None where there is none."""
    expired = token.HasField("expires_at") and token.expires_at.ToNanoseconds() <= time.time_ns()
    return {
        "name": token.name,
        "role": pb.Role.Name(token.role).removeprefix("ROLE_").lower(),
        "state": "revoked" if token.HasField("revoked_at") else "expired" if expired else "active",
        "created_by": token.created_by,
        "created_at": token.created_at.ToJsonString(),
        "expires_at": token.expires_at.ToJsonString() if token.HasField("expires_at") else None,
        "revoked_at": token.revoked_at.ToJsonString() if token.HasField("revoked_at") else None,
        "last_used_at": token.last_used_at.ToJsonString() if token.HasField("last_used_at") else None,
    }
