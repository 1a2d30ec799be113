"""What commands write: folders that appear whole or not at all, JSON files, tables."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def new_folder(out: Path, *, force: bool, marker: str) -> Iterator[Path]:
    """Yield a temporary sibling of ``out`` that takes its place when the block ends well.

    Args:
        out: folder to make.
        force: replace an existing folder, provided that it holds ``marker``: an older
            result of the same command, not somebody's home.
        marker: a file or folder that every result of the command contains.

    Raises:
        click.UsageError: ``out`` is taken.
        OSError: it cannot be written.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  (unlike resolve(), keeps a final link a link)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise click.UsageError(f"{out} is not a folder: choose another --out")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise click.UsageError(f"{out} is not empty: choose another folder, or replace it with --force")
        if not (out / marker).exists():
            raise click.UsageError(f"{out} holds no {marker}: --force replaces only what this command made")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    try:
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        yield temporary
        _swap(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Move ``new`` to ``out``; an older ``out`` is back in place if that fails."""
    if not out.exists() or not any(out.iterdir()):
        new.replace(out)
        return
    old = new.with_suffix(".replaced")
    out.replace(old)
    try:
        new.replace(out)
    except OSError:
        old.replace(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_json_target(path: Path | None) -> None:
    """Refuse a ``--json`` file that cannot be written before hours are spent on its content."""
    if path is None or str(path) == "-":
        return
    if path.is_dir():
        raise click.UsageError(f"{path} is a folder: --json takes a file, or - for standard output")
    parent = Path(os.path.abspath(path)).parent  # noqa: PTH100
    if not parent.is_dir():
        raise click.UsageError(f"the folder of --json {path} does not exist")


def check_out_file(path: Path, suffix: str) -> None:
    """Refuse an ``--out`` that cannot be written, or is not called ``*suffix``, before anything is done."""
    if path.suffix.lower() != suffix:
        raise click.UsageError(f"--out takes a {suffix} file, got {path}")
    if path.is_dir() or not Path(os.path.abspath(path)).parent.is_dir():  # noqa: PTH100
        raise click.UsageError(f"--out {path} cannot be written: its folder does not exist, or it is a folder")


def write_json(path: Path | None, body: Any) -> None:
    """Write ``body`` to ``path`` in one move, to standard output for ``-``, nowhere for None."""
    if path is None:
        return
    text = json.dumps(_finite(body), indent=2) + "\n"
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """The same data with NaN and infinity as null: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def screen(json_target: Path | None) -> "Console":
    """Console for people: standard output, unless that is taken by ``--json -``."""
    from rich.console import Console

    return Console(stderr=json_target is not None and str(json_target) == "-", highlight=False)


def progress_console() -> "Console":
    """Console for progress bars: standard error, so that output can be piped."""
    from rich.console import Console

    return Console(stderr=True)


def two_columns(console: "Console", rows: list[tuple[str, str]]) -> None:
    """Print names and values as an aligned, borderless table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        # Text, not markup: a class may be called "[red]".
        table.add_row(Text(name), Text(value))
    console.print(table)
