"""The live view of a request on a terminal."""

from collections.abc import Iterable

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from clue_coordinator import render
from clue_protocol.v1 import operator_pb2 as pb


def watch(views: Iterable[pb.RequestView | None], *, quiet: bool = False) -> pb.RequestView:
    """Show a stream of views live, and the last one as a table; None means that the coordinator is away."""
    console = Console(quiet=quiet)
    view = pb.RequestView()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        for new in views:
            if new is None:
                away = Text("the coordinator does not answer; waiting for it", style="yellow")
                live.update(Group(render.live_view(view), away) if view.request_id else away)
            else:
                view = new
                live.update(render.live_view(view))
    console.print(render.request_table(view))
    return view


def all_succeeded(view: pb.RequestView) -> bool:
    """True if every device of the request succeeded."""
    return view.counts.get("SUCCEEDED", 0) == sum(view.counts.values())
