"""The ``clue`` command: everything one device can do without a fleet.

Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted. An error is one line on stderr.
Commands import torch when they run, so that ``--help`` and ``--version`` answer at once.
"""

import typer

from clue import __version__
from clue.cli import _attention, _evaluate, _models, _report, _training, _unlearning
from clue.cli._bench import bench_command
from clue.cli._found import GroupWithFound
from clue.cli._run import run

__all__ = ["app", "main"]

app = typer.Typer(
    name="clue",
    cls=GroupWithFound,
    help="Make an image classifier forget one class, with images of that class alone.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"clue {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())
        raise typer.Exit(2)


_unlearning.register(app)
_evaluate.register(app)
_models.register(app)
_training.register(app)
_attention.register(app)
_report.register(app)
app.command("bench")(bench_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with its status."""
    raise SystemExit(run(app, arguments))
