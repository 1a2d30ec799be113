"""``clue evaluate``: everything that is known about how well a class is forgotten."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer

from clue.cli._output import check_json_target, progress_console, screen, two_columns, write_json
from clue.errors import DataError
from clue.spec import SPEC_FILE, WEIGHTS_FILE, file_sha256

if TYPE_CHECKING:
    from clue.bundle import ModelBundle
    from clue.evaluate import Accuracy, Judgement, ModelView

Scores = tuple["Accuracy", "Accuracy"]


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("evaluate")(evaluate)


@dataclass(frozen=True)
class Figure:
    """A metric as it is shown: value and 95 % interval, and the images it rests on."""

    label: str
    value: float
    interval: tuple[float, float]
    samples: int
    percent: bool = True

    def __str__(self) -> str:
        scale, digits = (100.0, 1) if self.percent else (1.0, 3)
        low, high = self.interval
        unit = " %" if self.percent else ""
        return f"{scale * self.value:.{digits}f}{unit} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def evaluate(
    model_dir: Path = typer.Argument(help="Model bundle: a folder with model.json and model.safetensors."),
    data_dir: Path = typer.Argument(
        metavar="DATA", help="Folder with train/<class>/ and test/<class>/; or with <class>/ alone, for UA and RA."
    ),
    class_name: str = typer.Option(..., "--class", help="Name of the forgotten class."),
    oracle: Path | None = typer.Option(None, "--oracle", help="Retrain: a bundle or its weights, to compare with."),
    fast: bool = typer.Option(False, "--fast", help="UA, RA and TA only."),
    cache: Path | None = typer.Option(None, "--cache", help="Folder for decoded images; that of 'clue bench'."),
    json_file: Path | None = typer.Option(
        None, "--json", help="Also write the numbers to this file; - is standard output."
    ),
    allow_factory: list[str] = typer.Option(
        [], "--allow-factory", help="module:function that the bundle may call to build its model."
    ),
) -> None:
    """How well a model has forgotten a class, with 95 % intervals; beside Retrain with --oracle."""
    check_json_target(json_file)
    import clue
    from clue.data.decoded import find_root

    bundle = clue.load_bundle(model_dir, allowed_factories=allow_factory)
    index = bundle.spec.class_index(class_name)
    body: dict[str, Any] = {"class": class_name, "model": bundle.digest}
    if data_dir.is_dir() and find_root(data_dir) is None:
        if oracle is not None:
            raise click.UsageError(f"--oracle needs train/ and test/ in {data_dir}")
        scores = score(bundle, data_dir, index)
        write_json(json_file, body | plain(scores))
        two_columns(screen(json_file), [("UA", percent(scores[0])), ("RA", percent(scores[1]))])
        return
    views = [_view(bundle, bundle.model, data_dir, index, cache)]
    if oracle is not None:
        body["oracle"], model = _oracle(oracle, bundle, allow_factory)
        views.append(_view(bundle, model, data_dir, index, cache))
    columns = [_accuracies(view) for view in views] if fast else _everything(views)
    gap = _average_gap(columns)
    body["average_gap"] = gap
    for name, figures in zip(("metrics", "retrain"), columns, strict=False):
        body[name] = {
            key: {"value": one.value, "low": one.interval[0], "high": one.interval[1], "samples": one.samples}
            for key, one in figures.items()
        }
    write_json(json_file, body)
    _show(json_file, class_name, columns, gap)


def score(bundle: "ModelBundle", holdout: Path, index: int) -> Scores:
    """(UA, RA) of a model on a folder of labelled images."""
    import clue

    images = clue.data.image_folder(holdout, bundle.spec)
    return clue.evaluate_classes(bundle.model, clue.data.loader(images), index)


def percent(score: "Accuracy") -> str:
    """A share with its interval and its number of images, as text."""
    if not score.samples:
        return "no images"
    low, high = score.interval()
    return f"{100 * score.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of {score.samples}"


def plain(scores: Scores | None) -> dict[str, Any]:
    """(UA, RA) as plain data."""
    if scores is None:
        return {}
    return {
        name: {"value": s.value, "correct": s.correct, "samples": s.samples, "interval95": s.interval()}
        for name, s in zip(("ua", "ra"), scores, strict=True)
    }


def _view(bundle: "ModelBundle", model: Any, data: Path, index: int, cache: Path | None) -> "ModelView":
    """The model on the images that ``clue bench`` takes by default, so that the numbers agree."""
    from rich.progress import Progress

    from clue.bench import Sizes, decode, default_cache, mapped, open_source
    from clue.evaluate import ModelView

    source = open_source(data)
    if source.classes != tuple(sorted(bundle.spec.classes)):
        raise DataError(f"{data} does not hold the classes of the model: {', '.join(bundle.spec.classes[:12])}")
    console = progress_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("decoding", total=None)
        images = decode(
            source,
            bundle.spec.input_size,
            cache or default_cache(),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    sizes = Sizes()
    counts = [sizes.retained] * len(bundle.spec.classes)
    counts[index] = sizes.forget
    train, test = mapped(images, "train", bundle.spec), mapped(images, "test", bundle.spec)
    return ModelView(model, train.first(counts), test, index)


def _oracle(path: Path, bundle: "ModelBundle", allow_factory: list[str]) -> tuple[str, Any]:
    """Digest of the oracle's weights, and the model."""
    from clue.architectures import build_model
    from clue.bundle import load_weights

    weights = path / WEIGHTS_FILE if (path / SPEC_FILE).is_file() else path
    if not weights.is_file():
        raise DataError(f"the oracle {path} does not exist: give a bundle or a safetensors file")
    model = build_model(bundle.spec, allowed_factories=allow_factory)
    load_weights(model, weights)
    return file_sha256(weights), model.eval()


def _accuracies(view: "ModelView") -> dict[str, Figure]:
    from clue.evaluate import ClassAccuracies

    found = ClassAccuracies().measure(view)
    named = (("ua", "UA", found.ua), ("ra", "RA", found.ra), ("ta", "TA", found.ta))
    return {key: _rate(label, accuracy) for key, label, accuracy in named}


def _everything(views: "list[ModelView]") -> list[dict[str, Figure]]:
    """All figures of the model, and of the oracle where there is one."""
    from clue.evaluate import judge

    console = progress_console()
    columns = []
    # Retrain comes last: its answers are what the model's are compared with.
    oracles = [views[-1].test] if len(views) > 1 else []
    for view, name in zip(views, ("the model", "Retrain"), strict=False):
        with console.status(f"judging {name}; this takes minutes"):
            columns.append(_figures(judge(view, oracles)))
    return columns


def _figures(found: "Judgement") -> dict[str, Figure]:
    accuracy, quantised = found.accuracy, found.quantised
    figures = {
        "ua": _rate("UA (training images)", accuracy.ua),
        "ra": _rate("RA (training images)", accuracy.ra),
        "ta": _rate("TA (test images)", accuracy.ta),
        "mia": _rate("MIA", found.membership.non_members),
        "ua_test": _rate("UA on test images", accuracy.ua_test),
        "linear_probe": _rate("linear probe", found.probe.recall),
    }
    for key, label, result in (
        ("relearn", "back after {} steps", found.relearn),
        ("relearn_head", "row reset, {} steps", found.relearn_head),
    ):
        for steps in result.after:
            samples = result.after[steps][0].samples
            figures[f"{key}_{steps}"] = Figure(
                label.format(steps), result.value(steps), result.interval(steps), samples
            )
    separation, calibration = found.separation, found.calibration
    figures["energy_auroc"] = Figure(
        "free energy, AUROC",
        separation.value,
        separation.interval(),
        separation.forget_samples + separation.retained_samples,
        percent=False,
    )
    for divergence in found.divergence:
        figures["kl_to_oracle"] = Figure(
            "KL from Retrain", divergence.value, divergence.interval(), divergence.samples, percent=False
        )
    figures["ece_retained"] = Figure(
        "calibration error", calibration.value, calibration.interval(), calibration.samples, percent=False
    )
    figures["ua_quantised"] = _rate("UA with 8-bit weights", quantised.ua)
    figures["ta_quantised"] = _rate("TA with 8-bit weights", quantised.ta)
    return figures


def _rate(label: str, accuracy: "Accuracy") -> Figure:
    return Figure(label, accuracy.value, accuracy.interval(), accuracy.samples)


def _average_gap(columns: list[dict[str, Figure]]) -> float | None:
    """In points; None without an oracle, or without MIA."""
    from clue.evaluate import average_gap

    if len(columns) < 2 or "mia" not in columns[0]:
        return None
    model, oracle = ({key: 100 * one.value for key, one in column.items()} for column in columns)
    return average_gap(model, oracle)


def _show(json_file: Path | None, class_name: str, columns: list[dict[str, Figure]], gap: float | None) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(f"forgotten: {class_name}"))
    for heading in ("model [95 %]", "Retrain [95 %]")[: len(columns)]:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("images", justify="right")
    for key, figure in columns[0].items():
        table.add_row(figure.label, *(str(column[key]) for column in columns), str(figure.samples))
    if gap is not None:
        table.add_row("average gap to Retrain", f"{gap:.2f}", *[""] * len(columns))
    screen(json_file).print(table)
