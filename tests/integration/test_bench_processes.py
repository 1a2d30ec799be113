"""The bench as a user runs it: real worker processes on real images, oracle trained on the spot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

import clue
from clue.bench import BenchOptions, Sizes, bench
from clue.data import write_digits
from clue.data.decoded import decode, mapped, open_source
from clue.spec import ModelSpec

pytestmark = pytest.mark.integration
SIZES = Sizes(forget=100, retained=40, test=20, draws=1, mia=200)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    return root


@pytest.fixture(scope="module")
def weights(digits, tmp_path_factory) -> Path:
    trainer = pytest.importorskip("clue.train")
    folder = tmp_path_factory.mktemp("model")
    source = open_source(digits)
    spec = ModelSpec("resnet20", source.classes, (8, 8))
    images = mapped(decode(source, (8, 8), folder), "train", spec)
    cache = trainer.ImageCache(images.pixels, images.labels, spec)
    model = trainer.train(spec, cache, recipe=trainer.RECIPES["digits"]).model
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_digits_end_to_end(digits, weights, tmp_path):
    options = BenchOptions(
        data=digits,
        weights=weights,
        forget_classes=("three",),
        methods=("delete", "random_labels"),
        input_size=(8, 8),
        recipe="digits",
        hyperparameters={"random_labels": {"lr": 1e30}, "delete": {"epochs": 10}},
        sizes=SIZES,
        cache=tmp_path / "cache",
        threads=1,
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


def test_a_worker_that_dies_is_a_failed_run(digits, tmp_path, monkeypatch):
    from clue.bench._job import WorkerJob
    from clue.bench._run import _Runner

    options = BenchOptions(data=digits, weights=tmp_path)
    runner = _Runner(tmp_path, options, lambda _line: None)
    job = WorkerJob(str(tmp_path), ModelSpec("resnet20", ("a", "b")).to_json(), "gone", "", 0)
    assert runner(job, "")["error"].startswith("BundleError: ")
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
