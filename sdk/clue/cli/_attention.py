"""``clue attention``: where a vision transformer looked before unlearning, and where it looks after."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer

from clue.cli._output import check_json_target, check_out_file, screen, two_columns, write_json
from clue.errors import BundleError
from clue.report._attention_figure import FigureRow, draw, require_matplotlib

if TYPE_CHECKING:
    import clue
    from clue.attention import AttentionChange, MapKind
    from clue.data import ImageFolder
    from clue.spec import ModelSpec

_KINDS = ("rollout", "last")


@dataclass(frozen=True)
class _Pair:
    """The two models and the class that lies between them."""

    before: "clue.ModelBundle"
    after: "clue.ModelBundle"
    forget_class: int
    kind: "MapKind"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("attention")(attention)


def attention(
    before_dir: Path = typer.Argument(metavar="BEFORE", help="Model bundle of the original, a vision transformer."),
    after_dir: Path = typer.Argument(metavar="AFTER", help="Model bundle after unlearning."),
    images_dir: Path = typer.Argument(
        metavar="IMAGES", help="Labelled images: a folder with one sub-folder per class."
    ),
    class_name: str = typer.Option(..., "--class", help="Name of the forgotten class."),
    out: Path = typer.Option(..., "--out", help="Picture to write, FILE.png."),
    kind: str = typer.Option("rollout", "--kind", help="rollout (all layers) or last (the last layer)."),
    rows: int = typer.Option(3, "--rows", min=1, max=8, help="Images shown of the class, and as many of others."),
    samples: int = typer.Option(64, "--samples", min=1, help="Images of the class, and as many of others, measured."),
    json_file: Path | None = typer.Option(None, "--json", help="Also write the numbers to this file; - is stdout."),
    allow_factory: list[str] = typer.Option([], "--allow-factory", help="module:function that a bundle may call."),
) -> None:
    """Draw where a vision transformer looks before and after unlearning, and measure the change."""
    check_out_file(out, ".png")
    check_json_target(json_file)
    if kind not in _KINDS:
        raise click.UsageError(f"--kind is {' or '.join(_KINDS)}, got {kind!r}")
    require_matplotlib()
    import clue
    from clue.attention import attention_change

    before = clue.load_bundle(before_dir, allowed_factories=allow_factory)
    after = clue.load_bundle(after_dir, allowed_factories=allow_factory)
    _check_alike(before.spec, after.spec)
    pair = _Pair(before, after, before.spec.class_index(class_name), "last" if kind == "last" else "rollout")
    images = clue.data.image_folder(images_dir, before.spec)
    forget, retained = _choose(images.labels, pair.forget_class, samples)
    if not forget:
        raise click.UsageError(f"{images_dir} holds no image of {class_name!r}")
    from torch.utils.data import Subset

    change = attention_change(
        before.model, after.model, Subset(images, forget + retained), pair.forget_class, pair.kind
    )
    shown = _rows(pair, images, _spread(forget, rows) + _spread(retained, rows))
    _write(shown, pair, change, class_name, out)
    write_json(json_file, {"class": class_name, "before": before.digest, "after": after.digest, **change.as_dict()})
    two_columns(screen(json_file), [("picture", str(out)), *_numbers(change)])


def _check_alike(before: "ModelSpec", after: "ModelSpec") -> None:
    for name in ("architecture", "classes", "input_size", "arguments", "mean", "std"):
        first, second = getattr(before, name), getattr(after, name)
        if first != second:
            raise BundleError(f"the two models are not of one kind: their {name.replace('_', ' ')} differs")


def _choose(labels: list[int], forget_class: int, count: int) -> tuple[list[int], list[int]]:
    """Indices of at most ``count`` images of the class, and of as many others, taken from all classes in turn."""
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    forget = by_class.pop(forget_class, [])[:count]
    longest = max((len(found) for found in by_class.values()), default=0)
    turns = [found[turn] for turn in range(longest) for found in by_class.values() if turn < len(found)]
    return forget, turns[:count]


def _spread(indices: list[int], count: int) -> list[int]:
    """``count`` of them, evenly apart, so that the retained rows show several classes."""
    if len(indices) <= count:
        return indices
    return [indices[step * len(indices) // count] for step in range(count)]


def _rows(pair: _Pair, images: "ImageFolder", indices: list[int]) -> list[FigureRow]:
    import torch

    from clue.attention import attention_maps

    batch = torch.stack([images[index][0] for index in indices])
    maps = [attention_maps(bundle.model, batch, pair.kind).numpy() for bundle in (pair.before, pair.after)]
    answers = [_answers(bundle, batch) for bundle in (pair.before, pair.after)]
    rows = []
    for position, index in enumerate(indices):
        label = images.labels[index]
        role = "forget" if label == pair.forget_class else "retained"
        rows.append(
            FigureRow(
                label=f"{_short(pair.before.spec.classes[label])}\n({role})",
                image=images.pixels(index).permute(1, 2, 0).numpy(),
                before=maps[0][position],
                after=maps[1][position],
                answer_before=answers[0][position],
                answer_after=answers[1][position],
            )
        )
    return rows


def _answers(bundle: "clue.ModelBundle", batch: Any) -> list[str]:
    import torch

    with torch.inference_mode():
        confidence, best = bundle.model(batch).float().softmax(1).max(1)
    return [
        f"says {_short(bundle.spec.classes[index])}, {100 * share:.0f} %"
        for share, index in zip(confidence.tolist(), best.tolist(), strict=True)
    ]


def _write(rows: list[FigureRow], pair: _Pair, change: "AttentionChange", class_name: str, out: Path) -> None:
    what = "attention rollout over all layers" if pair.kind == "rollout" else "attention of the last layer"
    numbers = f"mean correlation before / after: {change.forget_correlation:.2f} on the class"
    if change.retained_samples:
        numbers += f", {change.retained_correlation:.2f} on the others"
    temporary = out.with_name(f".{out.name}.new")
    try:
        draw(rows, f"Forgetting '{class_name}'", f"{what} ({pair.before.spec.architecture}); {numbers}", temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _numbers(change: "AttentionChange") -> list[tuple[str, str]]:
    found = [
        ("on the class", change.forget_correlation, change.forget_cosine, change.forget_samples),
        ("on the others", change.retained_correlation, change.retained_cosine, change.retained_samples),
    ]
    return [("maps", f"{change.kind}, before against after")] + [
        (name, f"correlation {correlation:.3f}, cosine {cosine:.3f}, {count} images" if count else "no images")
        for name, correlation, cosine, count in found
    ]


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"
