"""The bench without its processes: images, jobs, options, measures and the table."""

import io
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

import clue
from clue.architectures import build_model
from clue.bench import (
    QUICK,
    BenchOptions,
    Sizes,
    WorkerJob,
    bench,
    decode,
    mapped,
    open_source,
    tables,
    worker,
)
from clue.bench._job import write_result
from clue.bench._plausible import doubt
from clue.bench._report import cost, over_seeds, summary
from clue.cli import app
from clue.cli._run import run
from clue.data import image_folder
from clue.data.decoded import decoded_digest
from clue.errors import BundleError, ClueError, DataError, HyperparameterError, UnknownMethodError
from clue.spec import ModelSpec

CLASSES = ("apple", "bean", "corn")
SIZES = Sizes(forget=6, retained=6, test=4, draws=1, mia=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """root/{train,test}/<class>/N.png, 8 and 4 images a class, of several modes and sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (10, 8, 3)).astype(np.uint8)
                pixels[:, :, label] += 120
                image = Image.fromarray(pixels)
                image = {1: image.convert("L"), 2: image.convert("RGBA")}.get(index, image)
                image.save(root / split / name / f"{index}.png")
    (root / "train" / "apple" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "apple" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return ModelSpec("resnet20", CLASSES, (8, 8))


@pytest.fixture(scope="module")
def weights(spec, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(build_model(spec).state_dict(), path)
    return path


def zipped(folder: Path, path: Path, prefix: str = "some/where") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{prefix}/{file.relative_to(folder)}")
    return path


# -- images --------------------------------------------------------------------------------------


def test_pixels_are_those_of_the_image_folder(folder, spec, tmp_path):
    found = decode(open_source(folder), spec.input_size, tmp_path)
    for split in ("train", "test"):
        ours, theirs = mapped(found, split, spec), image_folder(folder / split, spec)
        assert len(ours) == len(theirs)
        for index in range(len(ours)):
            assert torch.equal(ours[index][0], theirs[index][0])
            assert ours[index][1] == theirs[index][1]


def test_many_items_at_once_are_those_read_one_by_one(folder, spec, tmp_path):
    data = mapped(decode(open_source(folder), spec.input_size, tmp_path), "train", spec).first([3, 0, 5])
    one_by_one = [data[index] for index in (7, 0, 0, 3)]
    at_once = data.__getitems__([7, 0, 0, 3])
    assert [label for _, label in at_once] == [label for _, label in one_by_one]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(at_once, one_by_one, strict=True))


@pytest.mark.parametrize("kind", ["nested", "zip", "zip in a folder"])
def test_every_form_of_the_data_gives_the_same_images(kind, folder, spec, tmp_path):
    plain = open_source(folder)
    if kind == "nested":
        shutil.copytree(folder, tmp_path / "above" / "cifar10")
        path = tmp_path / "above"
    else:
        name = "data.zip" if kind == "zip" else "cifar10-imagefolder.zip"
        (tmp_path / "above").mkdir()
        path = zipped(folder, tmp_path / "above" / name)
        path = path if kind == "zip" else path.parent
    source = open_source(path)
    assert source.classes == plain.classes == CLASSES
    first, second = (decode(one, spec.input_size, tmp_path / "cache") for one in (plain, source))
    assert torch.equal(mapped(first, "test", spec).pixels, mapped(second, "test", spec).pixels)


def test_images_are_decoded_once_and_again_when_they_change(folder, spec, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    first = decode(open_source(data), spec.input_size, tmp_path / "cache")
    stamp = (first / "train.npy").stat().st_mtime_ns
    assert decode(open_source(data), spec.input_size, tmp_path / "cache") == first
    assert (first / "train.npy").stat().st_mtime_ns == stamp
    assert decode(open_source(data), (4, 4), tmp_path / "cache") != first
    shutil.copy(data / "train/bean/0.png", data / "train/bean/new.png")
    again = decode(open_source(data), spec.input_size, tmp_path / "cache")
    assert len(mapped(again, "train", spec)) == len(mapped(first, "train", spec)) + 1


def test_pixels_stay_in_the_file(folder, spec, tmp_path):
    found = decode(open_source(folder), spec.input_size, tmp_path)
    data = mapped(found, "train", spec)
    assert isinstance(data._pixels, np.memmap)
    assert data._pixels.dtype == np.uint8
    assert isinstance(data.only(1)._pixels, np.memmap)


def test_subsets(folder, spec, tmp_path):
    data = mapped(decode(open_source(folder), spec.input_size, tmp_path), "train", spec)
    assert data.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(data.only(1)) == 8
    assert len(data.only(1, 3)) == 3
    chosen = data.first([2, 0, 3])
    assert chosen.labels.tolist() == [0, 0, 2, 2, 2]
    assert torch.equal(chosen[2][0], data[16][0])


def test_an_interrupted_decode_is_no_cache(folder, spec, tmp_path):
    source = open_source(folder)
    found = decode(source, spec.input_size, tmp_path)
    (found / "done.json").unlink()
    (found / "train.npy").write_bytes(b"half")
    assert len(mapped(decode(source, spec.input_size, tmp_path), "train", spec)) == 24


def test_data_that_is_not_there(tmp_path, folder):
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds neither"):
        open_source(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot read"):
        open_source(tmp_path / "bad.zip")
    odd = tmp_path / "odd"
    shutil.copytree(folder, odd)
    shutil.rmtree(odd / "test" / "bean")
    with pytest.raises(DataError, match="class 'bean' is in one of them only"):
        open_source(odd)


def test_an_unreadable_image_is_named(folder, spec, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "train/corn/3.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"cannot read the image train/corn/3\.png"):
        decode(open_source(data), spec.input_size, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_one_class_is_too_few(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "only").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / "only" / "0.png")
    with pytest.raises(DataError, match="one class only"):
        open_source(tmp_path)


def test_the_cache_is_named_by_content(folder, spec, tmp_path):
    key = open_source(folder).key
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_source(tmp_path / "elsewhere").key == key
    archives = [zipped(folder, tmp_path / name, prefix) for name, prefix in (("a.zip", "x"), ("b.zip", "y/z"))]
    assert open_source(archives[0]).key == open_source(archives[1]).key
    # An archive is read by its check sums; what comes out of it is the same data set.
    sources = [open_source(path) for path in (folder, archives[0])]
    found = {decoded_digest(decode(source, spec.input_size, tmp_path / "cache")) for source in sources}
    assert len(found) == 1
    changed = tmp_path / "elsewhere" / "train" / "corn" / "3.png"
    before = changed.stat()
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    other = open_source(tmp_path / "elsewhere")
    assert other.key != key
    assert decoded_digest(decode(other, spec.input_size, tmp_path / "cache")) not in found


def test_labels_follow_the_logits_of_the_model(folder, tmp_path):
    turned = ModelSpec("resnet20", ("corn", "apple", "bean"), (8, 8))
    images = mapped(decode(open_source(folder), (8, 8), tmp_path), "test", turned)
    assert images.labels.tolist() == [1] * 4 + [2] * 4 + [0] * 4
    with pytest.raises(DataError, match="'corn', which the model lacks"):
        mapped(decode(open_source(folder), (8, 8), tmp_path), "test", ModelSpec("resnet20", ("apple", "bean")))


def test_empty_class_and_damaged_cache(folder, spec, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    (tmp_path / "data" / "test" / "dill").mkdir()
    with pytest.raises(DataError, match=r"test/dill holds no \.png"):
        open_source(tmp_path / "data")
    images = decode(open_source(folder), spec.input_size, tmp_path / "cache")
    (images / "done.json").write_text("{}")
    with pytest.raises(DataError, match="is damaged, delete it"):
        mapped(images, "train", spec)


# -- jobs ----------------------------------------------------------------------------------------


def job_of(folder, spec, weights, cache, **changes) -> WorkerJob:
    images = decode(open_source(folder), spec.input_size, cache)
    base = {
        "cache": str(images), "spec": spec.to_json(), "weights": str(weights), "oracles": (str(weights),),
        "forget_class": 1, "sizes": SIZES, "task": "forget" if "method" in changes else "judge",
    }  # fmt: skip
    return WorkerJob(**base | changes)


def test_job_round_trip():
    job = WorkerJob("c", "s", 3, "forget", "w", ("o", "p"), "delete", {"lr": 0.5}, 7, "f", 2, QUICK)
    assert WorkerJob.from_json(job.to_json()) == job
    for text in ("", "[]", "{}", '{"sizes": {"lots": 1}}'):
        with pytest.raises(DataError, match="not a bench job"):
            WorkerJob.from_json(text)


def test_measures_of_a_run(folder, spec, weights, tmp_path):
    found = worker.measure(job_of(folder, spec, weights, tmp_path, method="delete"))
    for name in ("ua", "ra", "ta", "mia", "linear_probe", "relearn_5", "relearn_40", "relearn_head_40"):
        assert 0 <= found[name] <= 100, name
    assert found["detail"]["ua"]["samples"] == 6
    assert found["detail"]["ra"]["samples"] == 12
    assert found["detail"]["ta"]["samples"] == 8
    assert found["kl_to_oracle"] >= 0
    assert found["seconds"] > 0
    assert found["peak_rss_bytes"] >= 50 * 2**20
    assert found["energy_joules"] >= 0
    assert found["energy_source"] in ("rapl", "estimated")
    assert found["hyperparameters"]["lr"] == 0.01
    assert found["samples"] == 6


def test_measures_of_the_oracle_itself(folder, spec, weights, tmp_path):
    found = worker.measure(job_of(folder, spec, weights, tmp_path))
    assert found["kl_to_oracle"] == pytest.approx(0.0, abs=1e-9)
    assert "seconds" not in found
    assert worker.measure(job_of(folder, spec, weights, tmp_path, oracles=()))["kl_to_oracle"] is None


def test_worker_writes_a_failure_as_a_result(folder, spec, weights, tmp_path, capsys):
    asked, answered = tmp_path / "job.json", tmp_path / "result.json"
    job = job_of(folder, spec, weights, tmp_path, method="delete", hyperparameters={"lr": 1e30})
    asked.write_text(job.to_json())
    assert worker.main([str(asked), str(answered)]) == 0
    assert json.loads(answered.read_text())["error"].startswith("ForgetDivergedError: ")
    asked.write_text("{}")
    assert worker.main([str(asked), str(answered)]) == 1
    assert worker.main([]) == 2
    assert "not a bench job" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"cannot write .*r\.json: No such file"):
        write_result(tmp_path / "gone" / "r.json", {})


def test_results_are_strict_json(tmp_path):
    write_result(tmp_path / "r.json", worker._finite({"a": [float("nan"), 1.0], "b": {"c": float("inf")}}))
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}


TIMED = {"seconds_30_epochs": 900.0, "seconds_source": "extrapolated from 20 timed steps"}

# -- options -------------------------------------------------------------------------------------


def options_of(folder, model, tmp_path, **changes) -> BenchOptions:
    base = {
        "data": folder, "weights": model, "forget_classes": ("bean",), "methods": ("delete",),
        "input_size": (8, 8), "oracle_weights": model, "cache": tmp_path / "cache", "sizes": SIZES,
    }  # fmt: skip
    return BenchOptions(**base | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": ("oblivion",)}, UnknownMethodError, "choose one of"),
        ({"forget_classes": ("beam",)}, DataError, "did you mean 'bean'"),
        ({"seeds": 0}, DataError, "at least 1"),
        ({"hyperparameters": {"delete": {"lr": -1.0}}}, HyperparameterError, "lr must be positive"),
        ({"forget_classes": ()}, DataError, "one oracle serves one class"),
        ({"oracle_seeds": 2}, DataError, "one oracle serves one seed"),
        ({"oracle_seeds": 0}, DataError, "at least 1"),
        ({"architecture": "small_vit"}, BundleError, "does not fit the architecture"),
        ({"recipe": "cake"}, HyperparameterError, "no training recipe 'cake'"),
        ({"hyperparameters": {"retrain": {"recipe": "cake"}}}, HyperparameterError, "no training recipe 'cake'"),
        ({"oracle_weights": Path("gone-{class}")}, DataError, "gone-bean does not exist"),
        ({"weights": Path("gone")}, DataError, "gone does not exist"),
        ({"data": Path("gone")}, DataError, "gone does not exist"),
    ],
)
def test_wrong_options_stop_before_anything_runs(changes, error, message, folder, weights, tmp_path):
    with pytest.raises(error, match=message) as caught:
        bench(options_of(folder, weights, tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_bundle_knows_its_own_spec(folder, spec, tmp_path, monkeypatch):
    bundle = tmp_path / "bundle"
    clue.save_bundle(bundle, build_model(spec), spec)
    asked = []

    def answer(_self, job, _title):
        if job.task == "time":
            return TIMED
        asked.append(job)
        return {"ua": 50.0, "ra": 90.0, "ta": 80.0, "mia": 10.0}

    monkeypatch.setattr("clue.bench._run.Runner.__call__", answer)
    report = bench(
        options_of(folder, bundle, tmp_path, architecture="ignored", input_size=(1, 1)), json_path=tmp_path / "r.json"
    )
    assert {job.weights for job in asked} == {str(bundle / "model.safetensors")}
    assert asked[-1].model_spec().input_size == (8, 8)
    assert report["runs"][0]["average_gap"] == 0.0
    assert json.loads((tmp_path / "r.json").read_text()) == report


def test_all_classes_methods_and_seeds_are_run(folder, weights, tmp_path, monkeypatch):
    (tmp_path / "oracles").mkdir()
    for name in CLASSES:
        shutil.copy(weights, tmp_path / "oracles" / f"{name}.safetensors")
    seen = []

    def answer(_self, job, _title):
        if job.task == "time":
            return TIMED
        seen.append((Path(job.weights).stem, job.forget_class, job.method, job.seed))
        return {"ua": 10.0, "ra": 90.0, "ta": 80.0, "mia": 10.0} if job.method != "clue" else {"error": "no"}

    monkeypatch.setattr("clue.bench._run.Runner.__call__", answer)
    pattern = tmp_path / "oracles" / "{class}.safetensors"
    changed = options_of(
        folder, weights, tmp_path, forget_classes=(), methods=("clue", "delete"), oracle_weights=pattern, seeds=2
    )
    report = bench(changed)
    assert len(report["runs"]) == 3 * 2 * 2
    assert {(run["forget_class"], run["method"], run["seed"]) for run in report["runs"]} == {
        (name, method, seed) for name in CLASSES for method in ("clue", "delete") for seed in (0, 1)
    }
    assert ("corn", 2, "", 0) in seen
    assert ("model", 2, "delete", 1) in seen
    assert all(("error" in run) == (run["method"] == "clue") for run in report["runs"])


def test_a_broken_oracle_is_an_error(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("clue.bench._run.Runner.__call__", lambda *_: {"error": "it is broken"})
    with pytest.raises(ClueError, match="judging bean: Retrain: it is broken"):
        bench(options_of(folder, weights, tmp_path))


# -- report --------------------------------------------------------------------------------------


def test_means_and_spread_over_oracles():
    found = over_seeds([
        {"seed": 0, "ua": 0.0, "ra": 94.0, "ta": 88.0, "mia": 100.0, "energy_source": "rapl", "detail": {"a": 1}},
        {"seed": 1, "ua": 0.0, "ra": 96.0, "ta": 86.0, "mia": 100.0, "energy_source": "rapl", "detail": {"a": 2}},
    ])  # fmt: skip
    assert (found["ra"], found["seeds"], found["energy_source"]) == (95.0, 2, "rapl")
    assert found["spread"]["ra"] == pytest.approx(2**0.5)
    assert "detail" not in found
    assert [one["average_gap"] for one in found["per_seed"]] == [0.5, 0.5]
    alone = over_seeds([{"seed": 0, "ua": 1.0, "detail": {}}])
    assert (alone["ua"], alone["detail"], alone["spread"]) == (1.0, {}, {"ua": None})


def run_of(method, name="bean", seed=0, **figures):
    return {"forget_class": name, "method": method, "seed": seed} | figures


def test_summary_over_classes_and_seeds():
    runs = [run_of("delete", average_gap=1.0, linear_probe=70.0), run_of("delete", "corn", average_gap=4.0),
            run_of("delete", seed=1, error="no")]  # fmt: skip
    found = summary({"runs": runs, "retrain": {"bean": {"linear_probe": 50.0}, "corn": {}}})["delete"]
    assert (found["runs"], found["failed"]) == (2, 1)
    assert found["average_gap"] == {"mean": 2.5, "std": pytest.approx(4.5**0.5), "worst": 4.0}
    assert found["linear_probe_above_retrain"] == {"mean": 20.0, "std": None, "worst": 20.0}
    assert found["relearn_5"]["mean"] is None


def test_cost_ratios():
    runs = [run_of("clue_plus", seconds=10.0, peak_rss_bytes=60), run_of("clue_plus", seconds=30.0, peak_rss_bytes=80),
            run_of("boundary_shrinking", seconds=100.0, peak_rss_bytes=100)]  # fmt: skip
    found = cost({"runs": runs, "retrain": {"bean": {"seconds_30_epochs": 600.0}}}, "bean")
    assert found["clue_plus"]["times_faster_than_retrain_30_epochs"] == 30.0
    assert found["clue_plus"]["times_faster_than_boundary_shrinking"] == 5.0
    assert found["clue_plus"]["peak_rss_share_of_boundary_shrinking"] == 0.7
    alone = cost({"runs": runs[:1], "retrain": {"bean": {}}}, "bean")["clue_plus"]
    assert alone["times_faster_than_retrain_30_epochs"] is None
    assert alone["times_faster_than_boundary_shrinking"] is None


def test_a_bench_goes_on_where_it_was_stopped(folder, weights, tmp_path, monkeypatch):
    asked = []

    def answer(_self, job, _title):
        if job.task == "time":
            return TIMED
        if job.task == "forget":
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append((job.method, job.seed))
        return {"ua": 50.0, "ra": 90.0, "ta": 80.0, "mia": 10.0} if asked != [("clue", 0)] else {"error": "no"}

    monkeypatch.setattr("clue.bench._run.Runner.__call__", answer)
    options = options_of(folder, weights, tmp_path, methods=("clue", "delete"), seeds=2)
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench(options, json_path=path)
    assert asked == [("clue", 0), ("clue", 1), ("delete", 0)]
    assert len(json.loads(path.read_text())["runs"]) == 3
    del asked[:]
    report = bench(options, json_path=path, resume=True)
    # The run that failed is tried again; the two that are done are not.
    assert asked == [("clue", 0), ("delete", 1)]
    assert [(run["method"], run["seed"]) for run in report["runs"]] == [
        ("clue", 0), ("clue", 1), ("delete", 0), ("delete", 1)
    ]  # fmt: skip
    for changes, name in (({"seeds": 3}, "seeds"), ({"hyperparameters": {"delete": {"lr": 0.5}}}, "settings")):
        with pytest.raises(DataError, match=f"other options: {name} was") as caught:
            bench(replace(options, **changes), json_path=path, resume=True)
        assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot continue"):
        bench(options, json_path=path, resume=True)


def test_models_as_they_are_are_judged_once(folder, weights, tmp_path, monkeypatch):
    titles = []

    def answer(_self, job, title):
        titles.append(title)
        return TIMED if job.task == "time" else {"ua": 50.0, "ra": 90.0, "ta": 80.0, "mia": 10.0}

    monkeypatch.setattr("clue.bench._run.Runner.__call__", answer)
    options = options_of(folder, weights, tmp_path)
    bench(options)
    assert titles[0] == "judging bean: Retrain"  # the original has the same weights: the same judgement
    del titles[:]
    bench(options)
    assert not any(title.startswith("judging") for title in titles)
    bench(replace(options, use_judged=False))
    bench(replace(options, sizes=replace(SIZES, retained=5)))
    assert sum(title.startswith("judging") for title in titles) == 3


# -- table and command ---------------------------------------------------------------------------

MEASURED = {
    "ua": 4.0, "ra": 92.0, "ta": 86.0, "mia": 98.0, "average_gap": 2.5, "linear_probe": 70.0, "relearn_5": 40.0,
    "relearn_40": 70.0, "kl_to_oracle": 0.5, "seconds": 2.0, "peak_rss_bytes": 300 * 2**20,
    "energy_joules": 12.0, "energy_source": "estimated",
}  # fmt: skip
ORACLE = {"ua": 0.0, "ra": 94.0, "ta": 88.0, "mia": 100.0}


def shown(report) -> str:
    console = Console(file=io.StringIO(), width=200)
    for table in tables(report):
        console.print(table)
    return console.file.getvalue()


def test_table_shows_gaps_means_and_failures():
    common = {"forget_class": "bean", "method": "delete"}
    runs = [common | MEASURED, common | MEASURED | {"ua": 8.0}, {**common, "method": "clue", "error": "x"}]
    report = {"retrain": {"bean": ORACLE}, "original": {"bean": MEASURED}, "runs": runs}
    text = shown(report | {"cost": {"bean": cost(report, "bean")}})
    row = next(line for line in text.splitlines() if "delete" in line)
    assert "6.0 (6.0)" in row
    assert "92.0 (2.0)" in row
    assert "~12" in text
    assert "300" in text
    assert "failed" in next(line for line in text.splitlines() if "clue" in line)
    retrain = next(line for line in text.splitlines() if line.strip().startswith("Retrain"))
    assert "(" not in retrain
    assert "94.0" in text


def test_no_number_is_cut_on_a_narrow_terminal():
    methods = ("selective_synaptic_dampening", "boundary_shrinking")
    high = MEASURED | {"ua": 100.0, "ra": 0.0, "ta": 0.0, "mia": 0.0, "average_gap": 94.25}
    runs = [run_of(method, seed=seed) | high for method in methods for seed in (0, 1)]
    report = {"retrain": {"bean": ORACLE}, "original": {"bean": high}, "runs": runs}
    report |= {"summary": summary(report), "cost": {"bean": cost(report, "bean")}}
    console = Console(file=io.StringIO(), width=80)
    for table in tables(report):
        console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    assert "94.25" in text
    for heading in ("avg gap", "back 40", "boundary_s. is", "probe-Retrain"):
        assert heading in text


def test_command_prints_table_and_writes_report(folder, weights, tmp_path, monkeypatch, capsys):
    def command(*arguments):
        status = run(app, [str(a) for a in arguments])
        return status, *capsys.readouterr()

    measured = MEASURED | {"detail": {}}
    titles = []

    def measure(_runner, _job, title):
        titles.append(title)
        return dict(measured)

    monkeypatch.setattr("clue.bench._run.Runner.__call__", measure)
    common = ["bench", "--data", folder, "--weights", weights, "--forget-class", "bean", "--image-size", "8",
              "--cache", tmp_path / "cache", "--oracle-weights", weights]  # fmt: skip
    once = (*common, "--methods", "delete", "--json", tmp_path / "r.json")
    status, out, err = command(*once)
    assert status == 0, err
    assert "forget bean" in out
    assert len(json.loads((tmp_path / "r.json").read_text())["runs"]) == 1
    assert any("delete" in title for title in titles)
    titles.clear()
    status, out, err = command(*once, "--resume")
    assert status == 0, err
    assert not any("delete" in title for title in titles)
    assert len(json.loads((tmp_path / "r.json").read_text())["runs"]) == 1
    for wrong, expected, said in (
        (("--methods", "oblivion"), 2, "there is no unlearning method 'oblivion'"),
        (("--json", tmp_path / "no" / "r.json"), 2, "does not exist"),
        (("--json", tmp_path), 2, "is a folder"),
        (("--json", "-"), 2, "takes a file"),
        (("--resume",), 2, "needs --json"),
        (("--settings", tmp_path / "none"), 2, "cannot read"),
        (("--oracle-seeds", "2"), 1, "one oracle serves one seed"),
        (("--cache", folder / "train" / "apple" / "0.png"), 1, "cannot write the image cache"),
        (("--weights", folder), 1, "no model bundle"),
    ):
        status, out, err = command(*common, *wrong)
        assert (status, out) == (expected, ""), err
        last = err.splitlines()[-1]
        assert last.startswith("clue: error: ")
        assert said in last
    monkeypatch.setattr(
        "clue.bench._run.Runner.__call__",
        lambda _s, job, _t: {"error": "no"} if job.task == "forget" else dict(measured),
    )
    status, out, err = command(*common, "--methods", "delete")
    assert status == 1
    assert "delete on bean, seed 0: no" in err


class Colour(torch.nn.Module):
    """Names the brightest channel, which is the class; with ``order`` as another order of the logits."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = list(order)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))[:, self.order]


def test_a_model_that_guesses_is_doubted_and_the_order_of_its_logits(folder, spec, tmp_path):
    images = decode(open_source(folder), (8, 8), tmp_path)
    assert doubt(Colour((0, 1, 2)), spec, images, named=False) is None
    said = doubt(Colour((1, 2, 0)), spec, images, named=False)
    assert "of 24 training images" in said
    assert "(apple, bean, corn, ...)" in said
    assert "import-weights" in said
    assert "import-weights" not in doubt(Colour((1, 2, 0)), spec, images, named=True)
