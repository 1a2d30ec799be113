"""``clue report``: what a model forgot and kept, as one HTML file to read, print and pass on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clue.cli._output import check_out_file, progress_console, screen, two_columns
from clue.errors import BundleError, DataError
from clue.report import AFTER, BEFORE, ORACLE, require_libraries, write
from clue.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, file_sha256, read_spec

if TYPE_CHECKING:
    from torch import nn

    from clue.bench import ImageSource, MappedImages, Sizes


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("report")(report)


def report(
    data: Annotated[Path, typer.Option(help="Folder with train/<class>/ and test/<class>/, or CIFAR-10's zip.")],
    before: Annotated[Path, typer.Option(help="Weights (safetensors) of the original, or a model bundle.")],
    after: Annotated[Path, typer.Option(help="The same after forgetting.")],
    forget_class: Annotated[str, typer.Option(help="Name of the forgotten class.")],
    out: Annotated[Path, typer.Option(help="File to write, FILE.html.")],
    oracle: Annotated[Path | None, typer.Option(help="Retrain, to compare with: weights or a bundle.")] = None,
    bench: Annotated[
        Path | None, typer.Option(help="JSON of 'clue bench', for time, energy, memory and gaps of the methods.")
    ] = None,
    depth_checks: Annotated[
        bool, typer.Option("--depth-checks", help="Linear probe and relearning too; takes minutes.")
    ] = False,
    arch: Annotated[str, typer.Option(help="Architecture of the weights; a bundle knows its own.")] = "resnet20",
    image_size: Annotated[int, typer.Option(min=1, help="Side of the input; a bundle knows its own.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Few images: wide intervals.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder for decoded images; that of 'clue bench'.")] = None,
    allow_factory: Annotated[
        list[str] | None, typer.Option("--allow-factory", help="module:function that a bundle may call.")
    ] = None,
) -> None:
    """Write a report on a model before and after forgetting: one HTML file, without network or scripts."""
    check_out_file(out, ".html")
    require_libraries()
    from clue.bench import QUICK, BenchOptions, Sizes, decode, default_cache, mapped, open_source
    from clue.evaluate import ModelView
    from clue.report._bench_part import read_bench
    from clue.report._measure import measure
    from clue.report._model import model_page

    measured_costs = read_bench(bench, forget_class) if bench else None
    source = open_source(data)
    spec, _ = BenchOptions(data, before, architecture=arch, input_size=(image_size, image_size)).model(source.classes)
    index = spec.class_index(forget_class)
    given = [(BEFORE, before), (AFTER, after), *([(ORACLE, oracle)] if oracle else [])]
    models = [(series, *_model(path, spec, allow_factory or [])) for series, path in given]
    console = progress_console()
    with console.status("decoding the images") as status:
        folder = decode(source, spec.input_size, cache or default_cache())
        sizes = QUICK if quick else Sizes()
        train, test = _chosen(mapped(folder, "train", spec), mapped(folder, "test", spec), sizes, index)
        views = [(series, ModelView(model, train, test, index)) for series, model, _ in models]
        found = measure(views, depth=depth_checks, draws=sizes.draws, mia=sizes.mia, says=status.update)
        status.update("drawing")
        facts = [
            ("images", _images(source, train, test)),
            ("architecture", spec.architecture),
            *((f"weights, {series.name}", f"sha256 {digest}") for series, _, digest in models),
        ]
        if measured_costs:
            facts.append(("bench", f"clue {measured_costs.get('version', '')}, {len(measured_costs['runs'])} runs"))
        write(out, model_page(found, spec.classes, test, facts, measured_costs))
    rates = found[1].figures
    two_columns(
        screen(None),
        [("report", str(out)), *((name.upper(), f"{100 * rates[name].value:.1f} %") for name in ("ua", "ra", "ta"))],
    )


def _chosen(
    train: "MappedImages", test: "MappedImages", sizes: "Sizes", index: int
) -> "tuple[MappedImages, MappedImages]":
    """The images that ``clue bench`` and ``clue evaluate`` take, so that the numbers agree."""
    classes = int(train.labels.max()) + 1
    counts = [sizes.retained] * classes
    counts[index] = sizes.forget or len(train)
    return train.first(counts), test.first([sizes.test] * classes) if sizes.test else test


def _model(path: Path, spec: ModelSpec, allow_factory: list[str]) -> "tuple[nn.Module, str]":
    """The model with the weights at ``path``, and their digest."""
    from clue.architectures import build_model
    from clue.bundle import load_weights

    weights = path
    if (path / SPEC_FILE).is_file():
        own, _ = read_spec(path)
        for name in ("architecture", "classes", "input_size", "arguments", "mean", "std"):
            if getattr(own, name) != getattr(spec, name):
                raise BundleError(
                    f"{path} is not of the same kind as the original: its {name.replace('_', ' ')} differs"
                )
        weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise DataError(f"{path} does not exist: give a safetensors file or a model bundle")
    model = build_model(spec, allowed_factories=allow_factory)
    load_weights(model, weights)
    return model.eval(), file_sha256(weights)


def _images(source: "ImageSource", train: "MappedImages", test: "MappedImages") -> str:
    return f"{source.location.name}: {len(train):,} training and {len(test):,} test images"
