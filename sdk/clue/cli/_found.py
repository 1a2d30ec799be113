"""Commands of other packages: entry points of the group ``clue.commands``, each a typer app of one command."""

from importlib.metadata import entry_points

import click
import typer
from typer.core import TyperGroup

GROUP = "clue.commands"


class GroupWithFound(TyperGroup):
    """The commands of this package, and those that are found where they are installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Own commands first."""
        own = super().list_commands(ctx)
        return own + sorted({point.name for point in entry_points(group=GROUP)} - set(own))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A found command is loaded when it is asked for; what keeps it from loading is one line."""
        own = super().get_command(ctx, cmd_name)
        points = [] if own is not None else list(entry_points(group=GROUP, name=cmd_name))
        if not points:
            return own
        try:
            command: click.Command = typer.main.get_command(points[0].load())
        except ImportError as error:
            return _broken(cmd_name, f"cannot be loaded: {error}")
        command.name = cmd_name
        return command


def _broken(name: str, problem: str) -> click.Command:
    def say() -> None:
        raise click.ClickException(f"{name} {problem}")

    options = {"ignore_unknown_options": True, "allow_extra_args": True}
    return click.Command(name, callback=say, context_settings=options, short_help=problem)
