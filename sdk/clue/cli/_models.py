"""``clue info``, ``clue methods`` and ``clue import-weights``."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import typer

from clue.cli._output import check_json_target, new_folder, screen, two_columns, write_json
from clue.errors import BundleError
from clue.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_spec, verify_weights

_MOST_NAMES = 20


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("info")(info)
    app.command("methods")(methods)
    app.command("import-weights")(import_weights)


def info(
    model_dir: Path = typer.Argument(help="Model bundle."),
    json_file: Path | None = typer.Option(None, "--json", help="Also write it to this file; - is standard output."),
) -> None:
    """What a model bundle is: architecture, classes, digest; checks that its weights are intact."""
    check_json_target(json_file)
    spec, digest = read_spec(model_dir)
    verify_weights(model_dir, spec)
    values, size = _weights_size(model_dir / WEIGHTS_FILE)
    height, width = spec.input_size
    write_json(
        json_file,
        {
            "architecture": spec.architecture,
            "classes": spec.classes,
            "forgotten": spec.forgotten,
            "input_size": spec.input_size,
            "mean": spec.mean,
            "std": spec.std,
            "digest": digest,
            "weights_sha256": spec.weights_sha256,
            "values": values,
            "bytes": size,
        },
    )
    rows = [
        ("architecture", spec.architecture),
        ("classes", _listed(spec.classes)),
        ("forgotten", ", ".join(spec.forgotten) or "none"),
        ("input", f"RGB {height} x {width}, mean {spec.mean}, std {spec.std}"),
        ("weights", f"{values:,} numbers, {size / 1e6:.1f} MB"),
        ("digest", digest),
    ]
    two_columns(screen(json_file), rows)


def methods() -> None:
    """The unlearning methods and their hyper-parameters with defaults."""
    from rich.table import Table
    from rich.text import Text

    from clue.methods import available_methods, get_method

    table = Table(box=None, pad_edge=False)
    for heading in ("method", "hyper-parameter", "default"):
        table.add_column(heading)
    for name in available_methods(oracles=True):
        for index, setting in enumerate(fields(get_method(name).hyperparameters)):
            table.add_row(name if index == 0 else "", setting.name, Text(str(setting.default)))
    screen(None).print(table)
    oracles = sorted(set(available_methods(oracles=True)) - set(available_methods()))
    screen(None).print(
        f"{', '.join(oracles)}: a yardstick, it needs retained data; all others need forget samples only"
    )


def import_weights(
    file: Path = typer.Argument(help="State dict as safetensors."),
    arch: str = typer.Option(..., "--arch", help="resnet20, small_vit or torchvision:NAME."),
    classes: str = typer.Option(
        ..., "--classes", help="Class names in the order of the logits, with commas; or @FILE, one name a line."
    ),
    out: Path = typer.Option(..., "--out", help="Folder for the bundle."),
    input_size: str = typer.Option("32x32", "--input-size", metavar="HxW", help="Height and width in pixels."),
    mean: str = typer.Option("0.485,0.456,0.406", "--mean", help="Mean of R, G, B in [0, 1]."),
    std: str = typer.Option("0.229,0.224,0.225", "--std", help="Standard deviation of R, G, B."),
    argument: list[str] = typer.Option(
        [], "--argument", metavar="KEY=VALUE", help="Extra argument of the architecture, in JSON; repeatable."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an older model in --out."),
) -> None:
    """Make a model bundle from weights in a safetensors file."""
    spec = make_spec(arch, parse_classes(classes), input_size, mean, std, parse_arguments(argument))
    with new_folder(out, force=force, marker=SPEC_FILE) as folder:
        import clue
        from clue.architectures import build_model
        from clue.bundle import load_weights

        model = build_model(spec)
        load_weights(model, file)
        clue.save_bundle(folder, model, spec)
    two_columns(screen(None), [("model", str(out)), ("classes", _listed(spec.classes))])


def parse_classes(text: str) -> tuple[str, ...]:
    """``a,b,c`` or ``@FILE`` as names; a usage error where one is empty or the file cannot be read."""
    if text.startswith("@"):
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--classes cannot read {text[1:]}: {error}") from None
        names = tuple(line.strip() for line in lines if line.strip())
    else:
        names = tuple(name.strip() for name in text.split(","))
    if not names or not all(names):
        raise click.UsageError(f"--classes takes names with commas between them, or @FILE, got {text!r}")
    return names


def parse_arguments(given: list[str]) -> dict[str, Any]:
    """``key=value`` texts as arguments of an architecture; a value that is no JSON is taken as text."""
    arguments: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.UsageError(f"--argument takes key=value, got {text!r}")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def make_spec(
    arch: str,
    classes: tuple[str, ...],
    input_size: str,
    mean: str = "0.485,0.456,0.406",
    std: str = "0.229,0.224,0.225",
    arguments: dict[str, Any] | None = None,
) -> ModelSpec:
    """A spec from options as typed; what the spec itself refuses is wrong usage here."""
    try:
        height, width = (int(part) for part in input_size.lower().split("x"))
    except ValueError:
        raise click.UsageError(f"--input-size takes HEIGHTxWIDTH such as 32x32, got {input_size!r}") from None
    try:
        return ModelSpec(
            arch, classes, (height, width), _triple("--mean", mean), _triple("--std", std), arguments or {}
        )
    except BundleError as error:
        raise click.UsageError(str(error)) from None


def _triple(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"{option} takes three numbers with commas between them, got {text!r}") from None
    return red, green, blue


def _listed(names: tuple[str, ...]) -> str:
    """The first names and how many there are: ImageNet's thousand fill several screens."""
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMES])}, ... ({len(names)} in all)"


def _weights_size(path: Path) -> tuple[int, int]:
    """(numbers, bytes) of a safetensors file, from its header alone."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            shapes = [stored.get_slice(name).get_shape() for name in stored.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise BundleError(f"cannot read weights from {path}: {error}") from None
    return sum(prod(shape) for shape in shapes), path.stat().st_size
