"""``clue report``: the numbers of ``clue.evaluate`` on a page that stands alone."""

import json
import re
import sys
from pathlib import Path

import html_page
import pytest
import torch

import clue
from clue._head import overwrite_row
from clue.architectures import build_model
from clue.bench import QUICK, decode, mapped, open_source
from clue.cli import app
from clue.cli._run import run
from clue.evaluate import ClassAccuracies, EnergySeparation, LinearProbe, MembershipInference, ModelView
from clue.report import Bars, Dot, Page, Picture, Section, Table, Text, Tile, bars, dots, render
from clue.report._charts import AFTER
from clue.spec import ModelSpec

EVIL = "<b onclick=x>$a_b$</b></svg><script>1</script>&\x01é豆"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def after_dir(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with the row of class red overwritten."""
    bundle = clue.load_bundle(bundle_dir)
    assert overwrite_row(bundle.model, 0, 10.0)
    folder = tmp_path_factory.mktemp("after")
    clue.save_bundle(folder, bundle.model, bundle.spec.with_forgotten("red"))
    return folder


def bench_json(path: Path, forget_class: str = "red") -> Path:
    def one(method: str, seconds: float, **more: object) -> dict[str, object]:
        rates = {"ua": 1.0, "ra": 90.0, "ta": 88.0, "mia": 97.0, "average_gap": 2.5}
        cost = {"seconds": seconds, "peak_rss_bytes": 300 * 2**20, "energy_joules": 40.0, "energy_source": "rapl"}
        return {"forget_class": forget_class, "method": method, "seed": 0} | rates | cost | more

    body = {
        "format": "clue-bench/2",
        "version": "0.1.0",
        "retrain": {forget_class: {"ua": 0.0, "ra": 93.0, "ta": 91.0, "mia": 100.0, "seconds_30_epochs": 900.0}},
        "runs": [
            one("clue_plus", 3.0),
            one("delete", 6.0, energy_source="estimated"),
            {"forget_class": forget_class, "method": "lipschitz", "seed": 0, "error": "it <diverged>"},
        ],
    }
    path.write_text(json.dumps(body))
    return path


def options(images_root: Path, before: Path, after: Path, cache: Path, out: Path, *more: object) -> list[str]:
    given = ["--data", images_root, "--before", before, "--after", after, "--cache", cache, "--out", out]
    return ["report", *map(str, given), "--quick", *(["--forget-class", "red"]), *map(str, more)]


def views(root: Path, cache: Path, *bundles: clue.ModelBundle) -> list[ModelView]:
    spec = bundles[0].spec
    folder = decode(open_source(root), spec.input_size, cache)
    train, test = mapped(folder, "train", spec), mapped(folder, "test", spec)
    counts = [QUICK.forget, *[QUICK.retained] * 3]
    return [ModelView(one.model, train.first(counts), test, 0) for one in bundles]


def test_everything(
    images_root: Path,
    bundle_dir: Path,
    after_dir: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "report.html"
    bench = bench_json(tmp_path / "bench.json")
    arguments = options(images_root, bundle_dir, after_dir, cache, out, "--oracle", after_dir / "model.safetensors")
    assert run(app, [*arguments, "--bench", str(bench)]) == 0, capsys.readouterr()
    page = html_page.read(out.read_text(encoding="utf-8"))
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".json"] == ["report.html"]

    original, forgotten = views(images_root, cache, clue.load_bundle(bundle_dir), clue.load_bundle(after_dir))
    rates = {row[0]: row for row in page.tables[0].rows}
    for view, column in ((original, 1), (forgotten, 2), (forgotten, 3)):
        accuracy, attack = ClassAccuracies().measure(view), MembershipInference(limit=QUICK.mia).measure(view)
        for name, found in (("UA", accuracy.ua), ("RA", accuracy.ra), ("TA", accuracy.ta), ("MIA", attack.non_members)):
            low, high = found.interval()
            shown = f"{100 * found.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            assert rates[name][column] == shown
    text = "".join(page.text)
    assert f"after: AUROC {EnergySeparation().measure(forgotten).value:.3f}" in text
    assert any(f"mean {EnergySeparation().measure(forgotten).mean_forget:.1f} for red" in a for a in page.alternatives)
    costs, gaps = page.tables[-3], page.tables[-2]
    assert costs.rows[0] == ["clue_plus", "3.0 s", "300.0 x", "40 J", "rapl", "300 MiB"]
    assert costs.rows[1][3:5] == ["~40 J", "estimated"]
    assert costs.rows[2][:2] == ["Retrain, 30 epochs", "~900 s"]
    assert gaps.rows[0] == ["clue_plus", "1.0 (1.0)", "90.0 (3.0)", "88.0 (3.0)", "97.0 (3.0)", "2.50"]
    assert "lipschitz, seed 0, failed: it <diverged>" in text
    # The given oracle is the model itself.
    assert "the model is 0.00 points from it on average" in text
    assert len(page.alternatives) == 6
    assert "linear probe on the features, and" in text  # said to be missing


def test_a_transformer_with_depth_checks(images_root: Path, cache: Path, tmp_path: Path) -> None:
    spec = ModelSpec("small_vit", ("red", "green", "blue", "stripes"), (8, 8), arguments={"patch_size": 4})
    folders = [tmp_path / "before", tmp_path / "after"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        clue.save_bundle(folder, build_model(spec), spec)
    out = tmp_path / "vit.html"
    assert run(app, options(images_root, *folders, cache, out, "--depth-checks")) == 0
    page = html_page.read(out.read_text(encoding="utf-8"))
    assert ("h2", "Attention") in page.headings
    assert ("img", "alt", "Attention maps on images of red and of other classes, before and after.") in page.attributes
    [depth] = [table for table in page.tables if table.columns[0] == "attack"]
    [view] = views(images_root, cache, clue.load_bundle(folders[1]))
    assert depth.rows[0][2].startswith(f"{100 * LinearProbe().measure(view).value:.1f} %")
    assert "Retrain, the same network" not in "".join(page.text)
    assert depth.columns == ["attack", "before [95 %]", "after [95 %]"]


def test_only_text_is_put_on_a_page() -> None:
    charts = [
        bars([EVIL], [Bars(EVIL, [1.0], [EVIL])], EVIL, ["before"]),
        dots([(EVIL, [Dot(50, 40, 60)])], [AFTER], EVIL, EVIL),
    ]
    blocks = [Text(EVIL), Table(EVIL, [EVIL, EVIL], [[EVIL, EVIL]], note=EVIL), *(Picture(c, EVIL) for c in charts)]
    text = render(Page(EVIL, EVIL, [EVIL], [Tile(EVIL, EVIL, EVIL)], [Section(EVIL, blocks)], EVIL))
    page = html_page.read(text)
    assert not [tag for tag, _, _ in page.attributes if tag == "b"]
    assert page.tables[0].rows == [[EVIL, EVIL]]
    assert page.alternatives == [EVIL.replace("\x01", "\ufffd")] * 2
    assert "$a_b$" in "".join(page.text)  # no mathematics


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (("--out", "report.txt"), 2, ".html"),
        (("--out", "no/where.html"), 2, "folder does not exist"),
        (("--forget-class", "rad"), 2, "did you mean"),
        (("--after", "nothing"), 1, "does not exist"),
        (("--before", "nothing"), 1, "does not exist"),
        (("--bench", "nothing"), 1, "cannot read the bench"),
        (("--data", "nothing"), 1, "does not exist"),
    ],
)
def test_wrong_input(
    images_root: Path, bundle_dir: Path, after_dir: Path, cache: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str], status: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = options(images_root, bundle_dir, after_dir, cache, tmp_path / "r.html", *change)
    assert run(app, arguments) == status
    error = capsys.readouterr().err
    assert re.fullmatch("clue: error: .*\n", error), error
    assert words in error
    assert list(tmp_path.iterdir()) == []


def test_bench_of_other_things(tmp_path: Path) -> None:
    from clue.report import ReportError
    from clue.report._bench_part import read_bench

    with pytest.raises(ReportError, match=r"not about the class 'red' \(it holds: blue\)"):
        read_bench(bench_json(tmp_path / "b.json", "blue"), "red")
    (tmp_path / "other.json").write_text('{"runs": []}')
    with pytest.raises(ReportError, match="is no report of 'clue bench"):
        read_bench(tmp_path / "other.json", "red")


@pytest.mark.parametrize("missing", ["matplotlib.figure", "jinja2"])
def test_without_the_libraries(
    images_root: Path, bundle_dir: Path, cache: Path, tmp_path: Path, missing: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, missing, None)
    assert run(app, options(images_root, bundle_dir, bundle_dir, cache, tmp_path / "r.html")) == 1
    error = capsys.readouterr().err
    assert error == "clue: error: a report needs matplotlib and jinja2: pip install 'clue-unlearning[plots]'\n"
    assert list(tmp_path.iterdir()) == []
