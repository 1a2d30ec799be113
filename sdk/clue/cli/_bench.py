"""``clue bench``: unlearning methods side by side, each run in a fresh process."""

import json
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from clue.cli._output import check_json_target
from clue.cli._reporter import ConsoleReporter


def bench_command(
    data: Annotated[Path, typer.Option(help="Folder with train/<class>/ and test/<class>/, or CIFAR-10's zip.")],
    weights: Annotated[Path, typer.Option(help="Trained weights (safetensors), or a model bundle.")],
    forget_class: Annotated[str, typer.Option(help="Class names, separated by commas, or 'all'.")],
    arch: Annotated[str, typer.Option(help="Architecture of the weights; a bundle knows its own.")] = "resnet20",
    oracle_weights: Annotated[
        Path | None,
        typer.Option(help="Weights of the Retrain oracle; {class} and {seed} stand for these. Else it is trained."),
    ] = None,
    oracle_seeds: Annotated[int, typer.Option(min=1, help="Retrain oracles of each class, for their spread.")] = 1,
    oracle_epochs: Annotated[int, typer.Option(min=0, help="Epochs of the oracle; 0 takes the recipe's.")] = 0,
    recipe: Annotated[str, typer.Option(help="Training recipe of the oracle.")] = "cifar10",
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas, or 'all' that need forget samples only.")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, with seeds 0, 1, ...")] = 1,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the full report here.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the runs that --json already holds.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few images: minutes, not hours; wide intervals.")] = False,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the input; a bundle knows its own.")] = 32,
    hyperparameters: Annotated[
        Path | None, typer.Option("--settings", help="JSON file {method: {name: value}} of overrides.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded images and trained oracles.")] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Judge the original and Retrain again, known or not.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Threads of each run; 0 leaves the default.")] = 0,
) -> None:
    """Compare unlearning methods on your own images against retraining without the class."""
    check_json_target(json_path)
    if resume and json_path is None:
        raise click.UsageError("--resume needs --json, the report to go on with")
    if json_path is not None and str(json_path) == "-":
        raise click.UsageError("--json takes a file: the report is kept there while the bench runs")
    # Imported here, so that --help answers without loading torch.
    from clue.bench import BenchOptions, bench, default_cache, tables

    options = BenchOptions(
        data=data,
        weights=weights,
        forget_classes=_names(forget_class),
        methods=_names(methods),
        architecture=arch,
        input_size=(image_size, image_size),
        oracle_weights=oracle_weights,
        oracle_seeds=oracle_seeds,
        oracle_epochs=oracle_epochs,
        recipe=recipe,
        hyperparameters=_settings(hyperparameters),
        seeds=seeds,
        cache=cache or default_cache(),
        use_judged=not no_cache,
        threads=threads,
    )
    errors = Console(stderr=True)
    with ConsoleReporter(errors) as reporter:
        report = bench(options.quick() if quick else options, json_path=json_path, resume=resume, reporter=reporter)
    console = Console()
    for table in tables(report):
        console.print(table)
    failed = [run for run in report["runs"] if "error" in run]
    for run in failed:
        line = f"{run['method']} on {run['forget_class']}, seed {run['seed']}: {run['error']}"
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_path is not None:
        errors.print(f"report: {json_path}", markup=False, highlight=False, soft_wrap=True)
    if failed and len(failed) == len(report["runs"]):
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    """Comma-separated names; empty for ``all``."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise click.UsageError("give at least one name, or 'all'")
    if names == ("all",):
        return ()
    return tuple(dict.fromkeys(names))


def _settings(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"cannot read --settings {path}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise click.UsageError(f"--settings {path} must map method names to settings")
    return found
