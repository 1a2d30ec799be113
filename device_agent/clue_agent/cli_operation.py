"""``clue-agent status | doctor | logs | run-once``: what an operator needs while the agent is in use."""

import json
import logging
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from clue_agent.config import load_config

app = typer.Typer()

Config = Annotated[Path, typer.Option("--config", help="The agent's configuration file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_DEFAULT_CONFIG = Path("~/.clue/agent/agent.toml")
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
# sysexits.h: "temporary failure, try again later".
_EXIT_TEMPORARY = 75


@app.command()
def status(config: Config = _DEFAULT_CONFIG, as_json: Json = False) -> None:
    """What this device is and does, whether or not its agent runs."""
    from clue_agent.status import read_status

    now = read_status(load_config(config.expanduser()))
    if as_json:
        print(json.dumps(now.to_dict(), indent=2))
        return
    table = Table.grid(padding=(0, 2))
    table.add_row("device", now.device)
    table.add_row("agent", "running" if now.running else "not running: start it with 'clue-agent run'")
    table.add_row("fleet", now.fleet or "none yet: see 'clue-agent trust'")
    table.add_row("root", now.trust.root_text)
    table.add_row("time", now.trust.time_text)
    table.add_row("model", f"{now.model[:16]} ({len(now.classes)} classes)")
    table.add_row("forgotten", ", ".join(now.forgotten) or "nothing")
    busy = f"{now.working_on}: {now.stage} {100 * now.fraction:.0f} %" if now.working_on else "nothing"
    table.add_row("working on", f"{busy}, held: {now.held}" if now.held else busy)
    table.add_row("unfinished", f"{now.unfinished} job(s)")
    table.add_row("receipts", ", ".join(f"{count} {name}" for name, count in now.outcomes.items() if count) or "none")
    if now.last is not None:
        last = now.last
        table.add_row(
            "last", f"{last['finished_at']} {last['forget_class']!r} {last['outcome']} {last['detail']}".strip()
        )
    Console(soft_wrap=True, highlight=False).print(table)


@app.command()
def doctor(
    config: Config = _DEFAULT_CONFIG,
    as_json: Json = False,
    offline: Annotated[bool, typer.Option("--offline", help="Leave out what needs the network.")] = False,
) -> None:
    """Check everything that must be right on this device; exit code 1 if anything failed."""
    from clue_agent.doctor import examine, healthy

    findings = examine(config.expanduser(), offline=offline)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for finding in findings:
            console.print(f"{finding.level.value:<5}", style=_STYLES[finding.level], end="")
            advice = f"\n      -> {finding.advice}" if finding.advice else ""
            console.print(f"{finding.check}: {finding.detail}{advice}")
    if not healthy(findings):
        raise typer.Exit(1)


@app.command()
def logs(
    config: Config = _DEFAULT_CONFIG,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of every source.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
) -> None:
    """Show what the agent and its child processes said."""
    from clue_agent import logs as sources

    folder = load_config(config.expanduser()).logs
    journald = sources.unit_is_loaded()
    if journald:
        # The daemon itself writes to journald; its children have files of their own.
        subprocess.run(sources.journal_command(lines, follow=False), check=False)
    shown = False
    for line in sources.show(folder, lines):
        print(line)
        shown = True
    if not shown and not journald and not follow:
        print(f"no logs yet in {folder}; the agent's own lines are where 'clue-agent run' was started", file=sys.stderr)
    if not follow:
        return
    daemon = subprocess.Popen(sources.journal_command(0, follow=True)) if journald else None
    try:
        with suppress(KeyboardInterrupt, BrokenPipeError):
            for line in sources.follow(folder):
                if line:
                    print(line, flush=True)
    finally:
        if daemon is not None:
            daemon.terminate()
            daemon.wait()


@app.command(name="run-once")
def run_once(
    config: Config = _DEFAULT_CONFIG,
    quiet_seconds: Annotated[
        float, typer.Option("--quiet-seconds", min=10, help="End when nothing has happened for so long.")
    ] = 60.0,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=10, help="End after this in any case.")] = 3600.0,
) -> None:
    """Connect, work through what is pending, and end; exit code 75 if time ran out with work left."""
    from clue_agent.daemon import run
    from clue_agent.once import Ending, Once

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    once = Once(quiet_seconds, max_seconds)
    run(load_config(config.expanduser()), once=once)
    print(f"ended: {once.ending.value}, {once.unfinished} job(s) unfinished")
    if once.ending is Ending.OUT_OF_TIME and once.unfinished:
        raise typer.Exit(_EXIT_TEMPORARY)
