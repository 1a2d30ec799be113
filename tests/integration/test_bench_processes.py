"""The bench as a user runs it: real worker processes on real images, oracle trained on the spot."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clue
from clue import train as trainer
from clue.bench import BenchOptions, Sizes, WorkerJob, bench
from clue.bench._runner import Quiet, Runner
from clue.data import write_digits
from clue.data.decoded import decode, mapped, open_source
from clue.spec import ModelSpec

# On a slow machine that is busy besides, a bench of a few seconds takes minutes.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
SIZES = Sizes(forget=100, retained=40, test=20, draws=1, mia=200)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


@pytest.fixture(scope="module")
def weights(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    source = open_source(digits)
    spec = ModelSpec("resnet20", source.classes, (8, 8))
    images = mapped(decode(source, (8, 8), folder), "train", spec)
    cache = trainer.ImageCache(images.pixels, images.labels, spec)
    model = trainer.train(spec, cache, recipe=trainer.RECIPES["digits"]).model
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


class Told(Quiet):
    """What a bench says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def few_images(digits, weights, tmp_path) -> BenchOptions:
    """``delete`` on the class three, judged on few images."""
    return BenchOptions(
        data=digits,
        weights=weights,
        forget_classes=("three",),
        methods=("delete",),
        input_size=(8, 8),
        recipe="digits",
        sizes=SIZES,
        cache=tmp_path / "cache",
        threads=1,
    )


def test_digits_end_to_end(digits, weights, tmp_path):
    options = replace(
        few_images(digits, weights, tmp_path),
        methods=("delete", "random_labels"),
        hyperparameters={"random_labels": {"lr": 1e30}, "delete": {"epochs": 10}},
    )
    report = bench(options, json_path=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    oracle, original = report["retrain"]["three"], report["original"]["three"]
    assert oracle["ua"] == 0.0
    assert oracle["mia"] == 100.0
    assert original["ua"] > 90
    good, bad = report["runs"]
    assert good["ua"] < 20
    assert good["ra"] > 80
    assert good["average_gap"] < original["average_gap"]
    assert good["peak_rss_bytes"] > good["rss_before_bytes"] > 2**20
    assert good["samples"] == 100
    assert bad["error"].startswith("ForgetDivergedError")
    # The oracle is kept: a second bench trains nothing.
    assert len(list((tmp_path / "cache").glob("oracle-three-*/model.safetensors"))) == 1


def command(digits, weights, tmp_path, *more) -> list[str]:
    start = [sys.executable, "-c", "from clue.cli import main; main()", "bench", "--data", digits, "--weights", weights]
    options = ["--forget-class", "three", "--image-size", "8", "--recipe", "digits", "--threads", "1", "--quick"]
    return [str(part) for part in (*start, *options, "--cache", tmp_path / "cache", *more)]


def test_two_benches_and_a_killed_one_train_each_oracle_once(digits, weights, tmp_path):
    """A bench is killed while it trains; the two that follow share one training, which goes on from the checkpoint."""
    asked = command(digits, weights, tmp_path, "--methods", "retrain", "--oracle-epochs", "6")
    first = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "cache").glob("oracle-*.so-far.json")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.communicate()
    noted = next((tmp_path / "cache").glob("oracle-*.so-far.json"))
    before = json.loads(noted.read_text())
    assert 1 <= before["epochs"] < 6
    reports = [tmp_path / f"{index}.json" for index in range(2)]
    both = [
        subprocess.Popen([*asked, "--json", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for path in reports
    ]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "Traceback" not in "".join(said)
    found = [json.loads(path.read_text())["runs"][0] for path in reports]
    # One training, whose cost is that of all its epochs, the ones before the kill included.
    assert found[0]["seconds"] == found[1]["seconds"] > before["seconds"]
    assert found[0]["epochs"] == 6
    assert found[0]["average_gap"] == 0.0
    assert found[0]["peak_rss_bytes"] > 50 * 2**20
    kept = sorted(path.suffix for path in (tmp_path / "cache").glob("oracle-*"))
    assert kept == ["", ".lock"]
    # The very weights of a training that nobody disturbed.
    source = open_source(digits)
    spec = ModelSpec("resnet20", source.classes, (8, 8))
    images = mapped(decode(source, (8, 8), tmp_path / "cache"), "train", spec)
    cache = trainer.ImageCache(images.pixels, images.labels, spec)
    torch.set_num_threads(1)
    whole = trainer.train(
        spec, cache, recipe=replace(trainer.RECIPES["digits"], epochs=6), exclude=spec.class_index("three")
    ).model.state_dict()
    (oracle,) = (tmp_path / "cache").glob("oracle-*/model.safetensors")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(oracle).items())


def test_a_moved_data_set_needs_no_new_oracle(digits, weights, tmp_path):
    options = replace(few_images(digits, weights, tmp_path), oracle_epochs=1, oracle_seeds=2)
    first, second = Told(), Told()
    report = bench(options, json_path=tmp_path / "r.json", reporter=first)
    assert len([line for line in first.lines if "training" in line]) == 2
    assert len([line for line in first.lines if "judging" in line]) == 4
    retrain = report["retrain"]["three"]
    assert retrain["seeds"] == len(retrain["per_seed"]) == 2
    assert retrain["spread"]["ra"] >= 0
    assert retrain["seconds_30_epochs"] > retrain["seconds"]
    assert retrain["seconds_source"] == "extrapolated from 20 timed steps"
    assert report["cost"]["three"]["delete"]["times_faster_than_retrain_30_epochs"] > 0
    shutil.copytree(digits, tmp_path / "moved")
    moved = replace(options, data=tmp_path / "moved")
    again = bench(moved, json_path=tmp_path / "r.json", resume=True, reporter=second)
    assert not [line for line in second.lines if "training" in line or "judging" in line]
    assert again["runs"] == report["runs"] == json.loads((tmp_path / "r.json").read_text())["runs"]


def test_a_worker_that_dies_is_a_failed_run(tmp_path, monkeypatch):
    runner = Runner(tmp_path, 60, Quiet())
    job = WorkerJob(str(tmp_path), ModelSpec("resnet20", ("a", "b")).to_json(), 0, weights="gone")
    assert runner(job, "")["error"].startswith("BundleError: ")
    assert "longer than" in Runner(tmp_path, 0.1, Quiet())(job, "")["error"]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "status 1" in runner(job, "")["error"]


def test_help_comes_before_torch():
    code = (
        "import sys; from clue.cli import app; app(['bench', '--help'], standalone_mode=False);"
        " assert 'torch' not in sys.modules"
    )
    path = str(Path(clue.__file__).parents[1])
    wide = os.environ | {"PYTHONPATH": path, "COLUMNS": "160"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=wide, check=False)
    assert done.returncode == 0, done.stderr
    assert "--forget-class" in done.stdout
