"""The page about one model that has forgotten a class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from clue import __version__
from clue.evaluate import average_gap
from clue.report._attention_part import attention_picture
from clue.report._bench_part import bench_sections
from clue.report._charts import Bars, Histogram, bars, dots, histograms
from clue.report._features import decision_space
from clue.report._measure import RATES, Figure, MeasuredModel
from clue.report._page import Badge, Block, Facts, Page, Picture, Section, Table, Text, Tile

if TYPE_CHECKING:
    from clue.data.decoded import MappedImages

_MEANING = {
    "ua": "accuracy on training images of the forgotten class; 0 is the aim",
    "ra": "accuracy on training images of the other classes",
    "ta": "accuracy on test images of the other classes",
    "mia": "share of the forgotten images that an attacker takes for images the model never saw",
}
_DEPTH = (
    ("linear_probe", "linear probe"),
    ("relearn_5", "back after 5 steps"),
    ("relearn_40", "back after 40 steps"),
    ("relearn_head_5", "row reset, 5 steps"),
    ("relearn_head_40", "row reset, 40 steps"),
)
_OTHERS = (
    ("ua_test", "UA on test images", True),
    ("energy_auroc", "free energy, AUROC", False),
    ("kl_to_oracle", "KL from Retrain, nats", False),
    ("ece_retained", "calibration error on the other classes", False),
    ("ua_quantised", "UA with 8-bit weights", True),
)
# A probe finds a class in a model that never saw it, too: within this many points it is as far gone as in Retrain.
_NEAR = 5.0


def model_page(
    models: Sequence[MeasuredModel],
    classes: tuple[str, ...],
    images: "MappedImages",
    facts: Sequence[tuple[str, str]],
    bench: dict[str, Any] | None = None,
) -> Page:
    """The report.

    Args:
        models: before, after, and Retrain if there is one, as :func:`clue.report._measure.measure` returns them.
        classes: names in the order of the logits.
        images: the test images that the views were measured on.
        facts: names and values on what was measured.
        bench: the report of a bench that holds this class, for its costs and gaps.
    """
    before, after = models[:2]
    name = classes[after.view.forget_class]
    sections = [_accuracy(models, name), _answers(models, classes), _energy(models, name), _space(models, classes)]
    attention = _attention(before, after, images, classes)
    sections += [attention] if attention else []
    if "linear_probe" in after.figures:
        sections.append(_depth(models, name))
    sections += bench_sections(bench, name) if bench else []
    sections.append(Section("What was measured", [_other_numbers(models), Facts(facts)]))
    return Page(
        title=f"Forgetting “{name}”",
        kicker="CLUE report on one model",
        badge=None,
        summary=_summary(models, name),
        tiles=_tiles(models),
        sections=sections,
        footer=f"Written by clue {__version__}. Intervals are 95 % intervals of the sampling error alone.",
    )


def _summary(models: Sequence[MeasuredModel], name: str) -> list[str]:
    before, after = models[:2]
    ua, ra = after.figures["ua"], after.figures["ra"]
    change = 100 * (ra.value - before.figures["ra"].value)
    moved = "unchanged" if abs(change) < 0.05 else f"{abs(change):.1f} points {'lower' if change < 0 else 'higher'}"
    said = [
        f"Before, the model recognised {_percent(before.figures['ua'])} of {ua.samples:,} training images of “{name}”. "
        f"Now it recognises {_percent(ua)} of them ({_interval(ua)}). On the other classes it was right in "
        f"{_percent(before.figures['ra'])} of {ra.samples:,} images and is now right in {_percent(ra)}: {moved}."
    ]
    if len(models) > 2:
        oracle = models[2]
        gap = average_gap(after.rates(), oracle.rates())
        said.append(
            f"The yardstick is Retrain, the same network trained from scratch without “{name}”. Over UA, RA, TA and "
            f"MIA the model is {gap:.2f} points from it on average; before forgetting it was "
            f"{average_gap(before.rates(), oracle.rates()):.2f} points away."
        )
    if "linear_probe" not in after.figures:
        said.append(
            "Whether the class is erased or only hidden was not tested: --depth-checks adds a linear probe on the "
            "features, and attackers who train the class back."
        )
        return said
    probe, back = after.figures["linear_probe"], after.figures["relearn_40"]
    text = f"A linear probe on the features still finds {_percent(probe)} of the test images of “{name}”"
    if len(models) > 2:
        aim = models[2].figures["linear_probe"]
        above = 100 * (probe.value - aim.value)
        verdict = "about as few as in" if above <= _NEAR else "more than in"
        text += f", {verdict} Retrain ({_percent(aim)})"
    said.append(f"{text}. After 40 steps on ten images of each class, {_percent(back)} of them are recognised again.")
    return said


def _tiles(models: Sequence[MeasuredModel]) -> list[Tile]:
    before, after = models[:2]
    tiles = [
        Tile(label, _percent(after.figures[key]), f"before {_percent(before.figures[key])}") for key, label in RATES
    ]
    if len(models) > 2:
        gap, was = (average_gap(one.rates(), models[2].rates()) for one in (after, before))
        tiles.append(Tile("points from Retrain, average", f"{gap:.2f}", f"before {was:.2f}"))
    return tiles


def _accuracy(models: Sequence[MeasuredModel], name: str) -> Section:
    chart = dots(
        [(label, [one.figures[key].percent() for one in models]) for key, label in RATES],
        [one.series for one in models],
        "%",
        "UA, RA, TA and MIA with 95 % intervals. "
        + " ".join(
            f"{one.series.name}: {', '.join(f'{label} {_percent(one.figures[key])}' for key, label in RATES)}."
            for one in models
        ),
    )
    rows = []
    for key, label in RATES:
        cells = [f"{_percent(one.figures[key])} [{_low_high(one.figures[key])}]" for one in models]
        gap = [f"{100 * abs(models[1].figures[key].value - models[2].figures[key].value):.1f}"] if models[2:] else []
        rows.append((label, *cells, *gap, f"{models[1].figures[key].samples:,}", _MEANING[key]))
    columns = ["", *(f"{one.series.name} [95 %]" for one in models), *(["gap to Retrain"] if models[2:] else [])]
    columns += ["images", "meaning"]
    table = Table(
        f"Rates of forgetting “{name}”", columns, rows, frozenset({0, len(columns) - 1}),
        f"Average gap: {average_gap(models[1].rates(), models[2].rates()):.2f} points." if models[2:] else "",
    )  # fmt: skip
    return Section(
        "What it forgot, and what it kept",
        [Picture(chart, "The four rates of the paper; the lines are 95 % intervals."), table],
    )


def _answers(models: Sequence[MeasuredModel], classes: tuple[str, ...]) -> Section:
    """What the models say to test images of the forgotten class."""
    forget = models[0].view.forget_class
    counts = []
    for one in models:
        said = one.view.test.of_class(forget).logits.argmax(1)
        counts.append(torch.bincount(said, minlength=len(classes)).double() / max(1, len(said)) * 100)
    order = torch.stack(counts[1:]).mean(0)
    order[forget] = 101  # first
    chosen = [int(index) for index in order.argsort(descending=True)[:10]]
    names = [classes[index] for index in chosen]
    panels = [
        Bars(one.series.name, [float(count[i]) for i in chosen], [f"{float(count[i]):.1f} %" for i in chosen])
        for one, count in zip(models, counts, strict=True)
    ]
    said_now = ", ".join(f"{name} {text}" for name, text in zip(names[:4], panels[1].texts[:4], strict=True))
    roles = ["after" if index == forget else "plain" for index in chosen]
    total = int((models[0].view.test.labels == forget).sum())
    name = classes[forget]
    left_out = f" The {len(classes) - 10:,} rarest answers are left out." if len(classes) > 10 else ""
    chart = bars(
        names, panels, f"Answers to test images of {name} after forgetting: {said_now}.", roles, same_axis=True
    )
    caption = f"Answers to the {total:,} test images of “{name}”, none of which was used for forgetting.{left_out}"
    return Section(f"What it says instead of “{name}”", [Picture(chart, caption)])


def _energy(models: Sequence[MeasuredModel], name: str) -> Section:
    panels = [
        Histogram(
            f"{one.series.name}: AUROC {one.figures['energy_auroc'].value:.3f}",
            "free energy",
            [("other classes", "before", one.retained_energy.tolist()), (name, "after", one.forget_energy.tolist())],
            shares=True,
        )
        for one in models
    ]
    said = "; ".join(
        f"{one.series.name}: mean {float(one.forget_energy.mean()):.1f} for {name} and "
        f"{float(one.retained_energy.mean()):.1f} for the others" for one in models
    )  # fmt: skip
    chart = histograms(panels, f"Distributions of the free energy of test images. {said}.", same_axis=True)
    caption = (
        "Free energy −log Σ exp(logit) of test images (Fig. 4 of the paper). An image that the model has never "
        "known the like of has a high energy, so forgetting moves the class to the right. AUROC is the probability "
        f"that an image of “{name}” has the higher energy: 0.5 is no separation."
    )
    return Section("Free energy", [Picture(chart, caption)])


def _space(models: Sequence[MeasuredModel], classes: tuple[str, ...]) -> Section:
    name = classes[models[0].view.forget_class]
    alternative = f"t-SNE of the features of test images, a panel a model; images of {name} are orange triangles."
    markup, points = decision_space(models, classes, alternative)
    if not markup:
        return Section("Decision space", [Text("There are too few images, or the model has no linear classifier.")])
    caption = (
        f"What enters the classifier, for {points:,} test images, laid out by t-SNE (Fig. 2 of the paper); triangles "
        f"are “{name}”. A class in an island of its own is told apart by the features, whatever the model answers. "
        "Each panel is laid out by itself: islands may turn and change places, and only neighbourhoods mean anything."
    )
    return Section("Decision space", [Picture(markup, caption)])


def _attention(
    before: MeasuredModel, after: MeasuredModel, images: "MappedImages", classes: tuple[str, ...]
) -> Section | None:
    name = classes[after.view.forget_class]
    found = attention_picture(
        before, after, images, classes, f"Attention maps on images of {name} and of other classes, before and after."
    )
    if found is None:
        return None
    markup, change = found
    caption = (
        "Where the class token looks (Table 6 of the paper). Correlation of the maps before and after: "
        f"{change.forget_correlation:.2f} on {change.forget_samples} images of “{name}”, "
        f"{change.retained_correlation:.2f} on {change.retained_samples} others; 1 is the same places."
    )
    return Section("Attention", [Picture(markup, caption)])


def _depth(models: Sequence[MeasuredModel], name: str) -> Section:
    rows = [(label, [one.figures[key].percent() for one in models]) for key, label in _DEPTH]
    chart = dots(
        rows,
        [one.series for one in models],
        f"% of the test images of “{name}”",
        "Linear probe and relearning with 95 % intervals. "
        + " ".join(
            f"{one.series.name}: {', '.join(f'{label} {_percent(one.figures[key])}' for key, label in _DEPTH)}."
            for one in models
        ),
    )
    text = Text(
        "UA is easily passed by hiding the class at the classifier. The linear probe is a new classifier on frozen "
        "features; relearning is plain SGD on ten images of each class, and “row reset” first undoes what was done to "
        "the class's row of the classifier. Retrain's numbers are the floor: features of a network that never saw "
        "the class tell it apart to some degree."
    )
    cells = [
        (label, *(f"{_percent(one.figures[key])} [{_low_high(one.figures[key])}]" for one in models))
        for key, label in _DEPTH
    ]
    table = Table("The same in numbers", ("attack", *(f"{one.series.name} [95 %]" for one in models)), cells)
    return Section("Is it erased, or only hidden?", [text, Picture(chart, "Lower is better."), table])


def _other_numbers(models: Sequence[MeasuredModel]) -> Block:
    rows: list[Sequence[str | Badge]] = []
    for key, label, is_rate in _OTHERS:
        found = [one.figures.get(key) for one in models]
        if any(found):
            rows.append((label, *(_cell(figure, is_rate) for figure in found)))
    return Table("Further numbers", ("", *(f"{one.series.name} [95 %]" for one in models)), rows)


def _cell(figure: Figure | None, is_rate: bool) -> str:
    if figure is None:
        return "-"
    if is_rate:
        return f"{_percent(figure)} [{_low_high(figure)}]"
    return f"{figure.value:.3f} [{figure.interval[0]:.3f}, {figure.interval[1]:.3f}]"


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} %"


def _low_high(figure: Figure) -> str:
    return f"{100 * figure.interval[0]:.1f}, {100 * figure.interval[1]:.1f}"


def _interval(figure: Figure) -> str:
    return f"95 % interval {100 * figure.interval[0]:.1f} to {100 * figure.interval[1]:.1f}"
