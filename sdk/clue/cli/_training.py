"""``clue train`` and ``clue data``: a model and images to try unlearning on."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer

from clue.cli._models import make_spec, parse_classes
from clue.cli._output import new_folder, progress_console, screen, two_columns
from clue.errors import DataError, TrainError
from clue.spec import SPEC_FILE, ModelSpec, read_spec

if TYPE_CHECKING:
    from clue.train import Recipe, TrainProgress, TrainResult

_INPUT_SIZES = {"digits": "16x16", "digits_vit": "16x16", "cifar10": "32x32", "cifar10_vit": "32x32"}
_FORCE = typer.Option(False, "--force", help="Replace an older data set in DIR.")

data_app = typer.Typer(help="Fetch or unpack a data set as folders of images.", no_args_is_help=False)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("train")(train)
    app.add_typer(data_app, name="data")


def train(
    images_dir: Path = typer.Argument(help="Training images: a folder with one sub-folder per class."),
    out: Path = typer.Option(..., "--out", help="Folder for the model."),
    arch: str = typer.Option("resnet20", "--arch", help="resnet20, small_vit or torchvision:NAME."),
    recipe: str = typer.Option(
        "cifar10", "--recipe", help="digits or cifar10; digits_vit or cifar10_vit for transformers."
    ),
    like: Path | None = typer.Option(
        None, "--like", help="Model bundle whose architecture, classes and input are used."
    ),
    classes: str | None = typer.Option(
        None, "--classes", help="Class names in the order of the logits; default: the sub-folders, sorted."
    ),
    input_size: str | None = typer.Option(None, "--input-size", metavar="HxW", help="Default: the recipe's."),
    exclude: str | None = typer.Option(
        None, "--exclude", help="Leave this class out: the Retrain oracle of unlearning."
    ),
    epochs: int | None = typer.Option(None, "--epochs", min=1, help="Instead of the recipe's."),
    batch_size: int | None = typer.Option(None, "--batch-size", min=1, help="Instead of the recipe's."),
    peak_lr: float | None = typer.Option(None, "--peak-lr", help="Instead of the recipe's."),
    seed: int = typer.Option(0, "--seed", help="Seed of all randomness."),
    holdout: Path | None = typer.Option(None, "--holdout", help="Labelled images for a final accuracy."),
    checkpoint: Path | None = typer.Option(
        None, "--checkpoint", help="File to continue from after an interruption; written every epoch."
    ),
    max_seconds: float | None = typer.Option(
        None, "--max-seconds", min=0.0, help="Stop after this time; needs --checkpoint."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an older model in --out."),
) -> None:
    """Train a classifier from scratch, or the Retrain oracle with --exclude."""
    if recipe not in _INPUT_SIZES:
        raise click.UsageError(f"there is no recipe {recipe!r}; choose one of: {', '.join(_INPUT_SIZES)}")
    if max_seconds is not None and checkpoint is None:
        raise click.UsageError("--max-seconds needs --checkpoint, or the work done so far would be lost")
    size = input_size or _INPUT_SIZES[recipe]
    spec = _like(like) if like else make_spec(arch, _classes(classes, images_dir), size)
    index = spec.class_index(exclude) if exclude is not None else None
    with new_folder(out, force=force, marker=SPEC_FILE) as folder:
        import clue
        from clue.train import RECIPES, ImageCache, accuracy

        given = {"epochs": epochs, "batch_size": batch_size, "peak_lr": peak_lr}
        chosen = replace(RECIPES[recipe], **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        images = clue.data.image_folder(images_dir, spec)
        result = _train_with_bar(spec, images, chosen, index, seed, checkpoint, max_seconds)
        if not result.complete:
            raise TrainError(
                f"time is up after {result.epochs_done} of {chosen.epochs} epochs: "
                f"run again with the same --checkpoint {checkpoint} to go on"
            )
        share = None
        if holdout:
            share = accuracy(result.model, ImageCache.of(clue.data.image_folder(holdout, spec), spec))
        clue.save_bundle(folder, result.model, spec)
    rows = [("model", str(out)), ("time", f"{result.seconds:.1f} s, {result.epochs_done} epochs")]
    if share is not None:
        rows.append(("accuracy", f"{100 * share:.1f} % on {holdout}"))
    two_columns(screen(None), rows)


@data_app.command("digits")
def digits(folder: Path = typer.Argument(metavar="DIR", help="Folder to make."), force: bool = _FORCE) -> None:
    """Write 1,797 handwritten digits (8 x 8 pixels) as DIR/{train,test}/CLASS/*.png."""
    with new_folder(folder, force=force, marker="train") as root:
        from clue.data import write_digits

        write_digits(root)
    two_columns(screen(None), [("digits", str(folder))])


@data_app.command("cifar10")
def cifar10(folder: Path = typer.Argument(metavar="DIR", help="Folder to make."), force: bool = _FORCE) -> None:
    """Write CIFAR-10 as DIR/{train,test}/CLASS/*, from CLUE_DATA_DIR or downloaded."""
    with new_folder(folder, force=force, marker="train") as root:
        from clue.data.cifar10 import cifar10 as from_archive
        from clue.data.cifar10 import data_dir, download

        if data_dir() is not None:
            from_archive().write_all(root)
        else:
            download(root)
    two_columns(screen(None), [("cifar10", str(folder))])


def _like(model_dir: Path) -> ModelSpec:
    """The spec of an existing model, as new: nothing forgotten, no weights yet."""
    return replace(read_spec(model_dir)[0], forgotten=(), weights_sha256="")


def _classes(given: str | None, images_dir: Path) -> tuple[str, ...]:
    if given is not None:
        return parse_classes(given)
    if not images_dir.is_dir():
        raise DataError(f"image folder {images_dir} does not exist: give a folder with one sub-folder per class")
    names = sorted(p.name for p in images_dir.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{images_dir} needs at least two sub-folders, one per class; it has {len(names)}")
    return tuple(names)


def _train_with_bar(
    spec: ModelSpec,
    images: Any,
    recipe: "Recipe",
    exclude: int | None,
    seed: int,
    checkpoint: Path | None,
    max_seconds: float | None,
) -> "TrainResult":
    from rich.progress import Progress as Bar

    from clue.train import train as run

    console = progress_console()
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=None)

        def show(step: "TrainProgress") -> None:
            text = f"epoch {step.epoch}/{step.epochs}, loss {step.loss:.3f}, {step.eta_seconds:.0f} s left"
            bar.update(task, description=text, completed=step.step, total=step.steps)

        return run(
            spec,
            images,
            recipe=recipe,
            exclude=exclude,
            seed=seed,
            checkpoint=checkpoint,
            progress=show,
            max_seconds=max_seconds,
        )
