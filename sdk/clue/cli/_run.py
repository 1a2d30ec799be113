"""From exceptions to exit statuses: the only place where an error becomes text."""

import os
import sys

import click
import typer

from clue.errors import ClueError, HyperparameterError, UnknownClassError, UnknownMethodError
from clue.stopping import INTERRUPTED, stoppable

FAILED, USAGE = 1, 2

# What the user typed is wrong; everything else is something that failed.
_USAGE_ERRORS = (HyperparameterError, UnknownClassError, UnknownMethodError)


def run(app: typer.Typer, arguments: list[str] | None) -> int:
    """Run ``app`` and return the exit status; every expected error is one line on stderr."""
    try:
        with stoppable():
            result = typer.main.get_command(app).main(arguments, prog_name="clue", standalone_mode=False)
            sys.stdout.flush()
        if result == INTERRUPTED:  # typer turns Ctrl-C into this status, without a word
            return _fail("interrupted", INTERRUPTED)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except ClueError as error:
        return _fail(str(error), USAGE if isinstance(error, _USAGE_ERRORS) else FAILED)
    except BrokenPipeError:
        # The reader (head, less) has left; keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", FAILED)
    except MemoryError:
        return _fail("out of memory: use a smaller batch size, or fewer images", FAILED)


def _fail(message: str, status: int) -> int:
    print(f"clue: error: {' '.join(message.split())}", file=sys.stderr)
    return status
