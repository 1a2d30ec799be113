"""``clue-coordinator token``: who may use the operator API."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from clue_coordinator.cli_options import Home, JsonFlag, home_folder, operator_client, print_json, print_result
from clue_coordinator.cli_values import parse_duration
from clue_coordinator.config import load_config
from clue_coordinator.errors import CoordinatorError, UsageError
from clue_coordinator.plain import new_token_data, token_data
from clue_coordinator.roles import Role

token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens of the operator API.")


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
    as_json: JsonFlag = False,
) -> None:
    """Make a token. It is shown this once: the coordinator keeps its hash alone."""
    seconds = parse_duration("--expires", expires) if expires else 0.0
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: {out.parent} is not a folder")
    with operator_client(home) as client:
        if out is None:
            answer = client.create_token(name, role, seconds)
            if as_json:
                print_json(new_token_data(answer.token, answer.secret))
                return
            print(answer.secret)
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
    print_result(as_json, new_token_data(answer.token, None), f"'{name}' is {role.phrase}; its token is in {out}")


@token_app.command("list")
def token_list(home: Home = None, as_json: JsonFlag = False) -> None:
    """All tokens, expired and revoked ones included."""
    with operator_client(home) as client:
        tokens = client.list_tokens()
    rows = [token_data(token) for token in tokens]
    if as_json:
        print_json(rows)
        return
    from clue_coordinator.terminal import console, table

    found = table("token", "role", "state", "made by", "expires", "last used (UTC)")
    for row in rows:
        expires, used = ((at or "never")[:16].replace("T", " ") for at in (row["expires_at"], row["last_used_at"]))
        found.add_row(row["name"], row["role"], row["state"], row["created_by"], expires, used)
    console().print(found)


@token_app.command("revoke")
def token_revoke(
    name: Annotated[str, typer.Argument(help="Name of the token.")],
    home: Home = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token useless, at once and for ever."""
    with operator_client(home) as client:
        token = client.revoke_token(name)
    print_result(as_json, token_data(token), f"token '{name}' is revoked")


@token_app.command("recover")
def token_recover(home: Home = None) -> None:
    """Make a new admin token in the coordinator's own home, which must be stopped.

    For the day when no admin token is left. It replaces operator.token; whoever can write that folder could do all this
    anyway. Other tokens stay as they are.
    """
    from clue_coordinator.setup import recover_local_admin

    config = load_config(home_folder(home))
    print(f"'{recover_local_admin(config)}' is an admin; its token is in {config.operator_token}")
