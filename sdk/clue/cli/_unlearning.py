"""``clue forget``."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer

from clue.cli._evaluate import percent, plain, score
from clue.cli._output import check_json_target, new_folder, progress_console, screen, two_columns, write_json
from clue.errors import HyperparameterError
from clue.spec import SPEC_FILE

if TYPE_CHECKING:
    from torch import nn

    from clue.methods._registry import Method
    from clue.spec import ModelSpec

_MODEL = typer.Argument(help="Model bundle: a folder with model.json and model.safetensors.")
_CLASS = typer.Option(..., "--class", help="Name of the class.")
_JSON = typer.Option(None, "--json", help="Also write the numbers to this file; - is standard output.")
_TRUST = typer.Option([], "--allow-factory", help="module:function that the bundle may call to build its model.")


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("forget")(forget)


def forget(
    model_dir: Path = _MODEL,
    images_dir: Path = typer.Argument(help="Forget set: a folder that holds CLASS/*.png or *.jpg."),
    class_name: str = _CLASS,
    out: Path = typer.Option(..., "--out", help="Folder for the unlearned model."),
    method: str = typer.Option("clue", "--method", help="Unlearning method, see 'clue methods'."),
    settings: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="A hyper-parameter; repeatable."),
    seed: int = typer.Option(0, "--seed", help="Seed of all randomness."),
    batch_size: int = typer.Option(64, "--batch-size", min=1, help="Images per step."),
    holdout: Path | None = typer.Option(
        None, "--holdout", help="Labelled images CLASS/*.png for accuracy before and after."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an older model in --out."),
    json_file: Path | None = _JSON,
    allow_factory: list[str] = _TRUST,
) -> None:
    """Make a copy of a model that has forgotten one class, from images of that class alone."""
    check_json_target(json_file)
    with new_folder(out, force=force, marker=SPEC_FILE) as folder:
        import clue
        from clue.methods import get_method

        hyperparameters = parse_settings(get_method(method), settings)
        bundle = clue.load_bundle(model_dir, allowed_factories=allow_factory)
        index = bundle.spec.class_index(class_name)
        images = clue.data.image_folder(images_dir, bundle.spec, only=class_name)
        before = score(bundle, holdout, index) if holdout else None
        result = _forget_with_bar(bundle.model, images, index, method, seed, hyperparameters, batch_size)
        after = score(replace(bundle, model=result.model), holdout, index) if holdout else None
        spec = clue.save_bundle(folder, result.model, bundle.spec.with_forgotten(class_name))
        body = {
            "class": class_name,
            "model": {"before": bundle.digest, "weights_sha256": spec.weights_sha256},
            "report": result.report.as_dict(),
            "holdout": {"before": plain(before), "after": plain(after)} if before and after else None,
        }
        if json_file and str(json_file) != "-":
            write_json(json_file, body)
    if json_file and str(json_file) == "-":
        write_json(json_file, body)
    report = result.report
    for warning in report.warnings:
        click.echo(f"clue: warning: {_with_names(warning, bundle.spec)}", err=True)
    rows = [("model", str(out)), ("forgot", f"{class_name} with {method}, {report.samples} images")]
    if before and after:
        rows += [
            (name, f"{percent(b)} -> {percent(a)}") for name, b, a in zip(("UA", "RA"), before, after, strict=True)
        ]
    rows += [
        ("time", f"{report.seconds:.1f} s, {report.epochs} epochs"),
        ("energy", f"{report.joules:.1f} J ({report.energy.source}: {report.energy.detail})"),
        ("peak memory", f"{report.peak_memory_bytes / 2**20:.0f} MiB"),
        ("weights", f"{100 * report.weights_changed:.1f} % changed"),
    ]
    two_columns(screen(json_file), rows)


def parse_settings(method: "Method", given: list[str]) -> dict[str, Any]:
    """``key=value`` texts as typed hyper-parameters; HyperparameterError says which one is wrong."""
    defaults = {f.name: f.default for f in fields(method.hyperparameters)}
    parsed: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes key=value, got {text!r}")
        # An unknown key goes through as text: the method's own check names those that exist.
        parsed[key] = _typed(key, value, defaults.get(key, ""))
    from clue.methods import make_hyperparameters

    make_hyperparameters(method, parsed)
    return parsed


def _typed(key: str, value: str, default: object) -> Any:
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value) if kind in (int, float) else value
    except (ValueError, KeyError):
        raise HyperparameterError(f"{key} must be of type {kind.__name__}, got {value!r}") from None


def _forget_with_bar(
    model: "nn.Module",
    images: Any,
    index: int,
    method: str,
    seed: int,
    hyperparameters: dict[str, Any],
    batch_size: int,
) -> Any:
    from rich.progress import Progress as Bar

    import clue

    console = progress_console()
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("forgetting", total=1.0)
        return clue.forget(
            model,
            images,
            index,
            method,
            seed,
            lambda step: bar.update(task, completed=step.fraction),
            hyperparameters=hyperparameters,
            batch_size=batch_size,
        )


def _with_names(text: str, spec: "ModelSpec") -> str:
    """The SDK speaks of ``class 3``, people of cats."""
    return re.sub(r"\bclass (\d+)\b", lambda found: f"'{spec.classes[int(found[1])]}'", text)
