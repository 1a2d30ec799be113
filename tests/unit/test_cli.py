import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import clue
from clue.cli import app
from clue.cli._run import run

SETTINGS = [
    "lr=0.02",
    "epochs=100",
    "max_steps=0",
    "clip_norm=0",
    "energy=logsumexp",
    "noise_cells=0",
    "energy_weight=1",
    "kd_weight=0.1",
    "noise=gaussian",
    "noise_level=4",
    "mask_level=0.3",
]
FORGET = [part for setting in SETTINGS for part in ("--set", setting)]


class Outcome:
    """What one command did."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def cli(capsys):
    """Run the command in this process."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = run(app, [str(a) for a in arguments])
        return Outcome(status, *capsys.readouterr())

    return call


def assert_one_line(outcome: Outcome, status: int, said: str) -> None:
    assert outcome.status == status, outcome.err
    assert outcome.err.startswith("clue: error: ")
    assert outcome.err.count("\n") == 1
    assert said in outcome.err
    assert outcome.out == ""


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_forget_end_to_end(cli, bundle_dir, images_root, tmp_path) -> None:
    out, report = tmp_path / "new", tmp_path / "report.json"
    done = cli(
        *("forget", bundle_dir, images_root / "train", "--class", "red", "--out", out, *FORGET),
        *("--holdout", images_root / "test", "--json", report),
    )
    assert done.status == 0, done.err
    body = json.loads(report.read_text())
    before, after = body["holdout"]["before"], body["holdout"]["after"]
    assert before["ua"]["value"] == 1.0
    assert after["ua"]["value"] <= 0.1
    assert after["ua"]["samples"] == 10
    assert after["ra"]["samples"] == 30
    assert after["ua"]["interval95"][0] <= after["ua"]["value"] <= after["ua"]["interval95"][1]
    assert body["report"]["hyperparameters"]["lr"] == 0.02
    assert body["report"]["energy"]["source"] in ("rapl", "estimated")
    for word in ("UA", "RA", "energy", "peak memory"):
        assert word in done.out
    assert clue.load_bundle(out).spec.forgotten == ("red",)
    assert leftovers(tmp_path) == []
    # evaluate sees what forget reported
    scored = cli("evaluate", out, images_root / "test", "--class", "red", "--json", "-")
    assert scored.status == 0
    assert json.loads(scored.out)["ua"] == after["ua"]
    assert "UA" in scored.err


def test_out_is_never_overwritten_by_accident(cli, bundle_dir, images_root, tmp_path) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "wedding.jpg").write_text("x")
    arguments = ("forget", bundle_dir, images_root / "train", "--class", "red", "--set", "epochs=1")
    arguments = (*arguments, "--set", "min_steps=0", "--out")
    assert_one_line(cli(*arguments, precious), 2, "--force")
    # --force replaces a model, not somebody's photographs
    assert_one_line(cli(*arguments, precious, "--force"), 2, "model.json")
    assert (precious / "wedding.jpg").exists()
    assert cli(*arguments, tmp_path / "new").status == 0
    assert_one_line(cli(*arguments, tmp_path / "new"), 2, "not empty")
    assert cli(*arguments, tmp_path / "new", "--force").status == 0
    (tmp_path / "empty").mkdir()
    assert cli(*arguments, tmp_path / "empty").status == 0
    assert_one_line(cli(*arguments, precious / "wedding.jpg"), 2, "not a folder")
    assert leftovers(tmp_path) == []


def test_usage_errors(cli, bundle_dir, images_root, tmp_path) -> None:
    start = ("forget", bundle_dir, images_root / "train", "--out", tmp_path / "x", "--class")
    assert_one_line(cli(*start, "rad"), 2, "did you mean 'red'")
    assert_one_line(cli(*start, "red", "--method", "amnesia"), 2, "amnesia")
    assert_one_line(cli(*start, "red", "--set", "lr=fast"), 2, "float")
    assert_one_line(cli(*start, "red", "--set", "epochs=1.5"), 2, "int")
    assert_one_line(cli(*start, "red", "--set", "lr=-1"), 2, "positive")
    assert_one_line(cli(*start, "red", "--set", "learning=1"), 2, "learning")
    assert_one_line(cli(*start, "red", "--set", "lr"), 2, "key=value")
    assert_one_line(cli(*start, "red", "--batch-size", "0"), 2, "batch-size")
    assert_one_line(cli(*start, "red", "--json", tmp_path / "no" / "x.json"), 2, "does not exist")
    assert_one_line(cli("forget", bundle_dir), 2, "Missing argument")
    assert_one_line(cli("remember"), 2, "No such command")
    assert list(tmp_path.iterdir()) == []


def test_failures(cli, bundle_dir, images_root, tmp_path) -> None:
    out = tmp_path / "out"
    images = images_root / "train"
    common = ("--class", "red", "--out", out)
    assert_one_line(cli("forget", tmp_path / "none", images, *common), 1, "does not exist")
    assert_one_line(cli("forget", bundle_dir, tmp_path / "none", *common), 1, "does not exist")
    assert_one_line(cli("forget", bundle_dir, images / "red", *common), 1, "no .png or .jpg")
    assert_one_line(cli("info", images_root), 1, "not a model bundle")
    (tmp_path / "odd" / "pink").mkdir(parents=True)
    assert_one_line(cli("evaluate", bundle_dir, tmp_path / "odd", "--class", "red"), 1, "not named after a class")
    diverged = cli("forget", bundle_dir, images, *common, "--set", "lr=1e30", "--set", "mask=none")
    assert_one_line(diverged, 1, "lower the learning rate")
    damaged = tmp_path / "damaged" / "red"
    damaged.mkdir(parents=True)
    (damaged / "a.png").write_bytes(b"not a picture")
    assert_one_line(cli("forget", bundle_dir, damaged.parent, *common), 1, "a.png")
    (tmp_path / "file").write_text("")
    blocked = cli("forget", bundle_dir, images, "--class", "red", "--out", tmp_path / "file" / "x")
    assert_one_line(blocked, 1, "file")
    assert not out.exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OSError(28, "No space left on device", "x"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_a_stop_while_saving_leaves_nothing(
    cli, bundle_dir, images_root, tmp_path, monkeypatch, error, status, said
) -> None:
    def stop(*_: object) -> None:
        raise error

    old = tmp_path / "out"
    clue.save_bundle(old, *_loaded(bundle_dir))
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    monkeypatch.setattr("clue.bundle.save_file", stop)
    start = ("forget", bundle_dir, images_root / "train", "--class", "red", "--set", "epochs=1")
    outcome = cli(*start, "--set", "min_steps=0", "--out", old, "--force", "--json", tmp_path / "r.json")
    assert_one_line(outcome, status, said)
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _loaded(bundle_dir: Path):
    loaded = clue.load_bundle(bundle_dir)
    return loaded.model, loaded.spec


def test_evaluate_beside_retrain(cli, bundle_dir, images_root, tmp_path) -> None:
    start = ("evaluate", bundle_dir, images_root, "--class", "red", "--cache", tmp_path / "cache")
    done = cli(*start, "--oracle", bundle_dir, "--json", tmp_path / "r.json")
    assert done.status == 0, done.err
    body = json.loads((tmp_path / "r.json").read_text())
    asked = {"ua", "ra", "ta", "mia", "linear_probe", "relearn_5", "relearn_40", "energy_auroc", "kl_to_oracle"}
    assert body["metrics"].keys() >= asked | {"ece_retained", "ua_quantised"}
    for one in body["metrics"].values():
        assert one["low"] <= one["value"] <= one["high"]
        assert one["samples"] >= 10
    # The oracle is the model itself here.
    assert body["average_gap"] == 0.0
    assert body["metrics"] == body["retrain"]
    assert body["metrics"]["kl_to_oracle"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert "average gap to Retrain" in done.out
    fast = cli(*start, "--fast", "--json", "-")
    assert json.loads(fast.out)["metrics"] == {name: body["metrics"][name] for name in ("ua", "ra", "ta")}
    assert_one_line(cli(*start, "--oracle", tmp_path / "none"), 1, "the oracle")
    assert_one_line(cli("evaluate", bundle_dir, images_root / "test", "--class", "red", "--oracle", "x"), 2, "--oracle")
    assert_one_line(cli("evaluate", bundle_dir, tmp_path / "none", "--class", "red"), 1, "does not exist")


def test_info(cli, bundle_dir) -> None:
    done = cli("info", bundle_dir, "--json", "-")
    body = json.loads(done.out)
    bundle = clue.load_bundle(bundle_dir)
    assert body["digest"] == bundle.digest
    assert body["classes"] == list(bundle.spec.classes)
    assert body["values"] == sum(t.numel() for t in bundle.model.state_dict().values())
    assert bundle.digest in cli("info", bundle_dir).out


def test_methods(cli) -> None:
    done = cli("methods")
    assert done.status == 0
    for method in clue.available_methods():
        assert method in done.out
    assert "stop_accuracy" in done.out


def test_import_weights(cli, bundle_dir, tmp_path) -> None:
    weights = bundle_dir / "model.safetensors"
    start = ("import-weights", weights, "--arch", "resnet20", "--input-size", "8x8", "--out", tmp_path / "m")
    assert cli(*start, "--classes", "red, green,blue,stripes").status == 0
    imported = clue.load_bundle(tmp_path / "m")
    assert imported.spec.classes == ("red", "green", "blue", "stripes")
    stored = load_file(weights)
    assert all(bool((t == stored[n]).all()) for n, t in imported.model.state_dict().items())
    start = (*start[:-1], tmp_path / "n")
    assert_one_line(cli(*start, "--classes", "a,b,c"), 1, "4 classes, but 3 class names")
    assert_one_line(cli(*start, "--classes", "a,,c,d"), 2, "commas")
    assert_one_line(cli(*start, "--classes", "a,a,c,d"), 2, "unique")
    assert_one_line(cli(*start, "--classes", "a,b,c,d", "--input-size", "8"), 2, "HEIGHTxWIDTH")
    assert_one_line(cli(*start, "--classes", "a,b,c,d", "--mean", "1,2"), 2, "three numbers")
    assert_one_line(cli("import-weights", tmp_path / "no", *start[2:], "--classes", "a,b,c,d"), 1, "no")
    assert not (tmp_path / "n").exists()


def test_train_and_the_oracle(cli, images_root, bundle_dir, tmp_path) -> None:
    images = images_root / "train"
    options = ("--epochs", "2", "--batch-size", "16", "--peak-lr", "0.05")
    start = ("train", images, *options, "--input-size", "8x8", "--out", tmp_path / "m")
    done = cli(*start, "--holdout", images_root / "test")
    assert done.status == 0, done.err
    assert "accuracy" in done.out
    assert clue.load_bundle(tmp_path / "m").spec.classes == ("blue", "green", "red", "stripes")
    oracle = cli("train", images, *options, "--like", bundle_dir, "--exclude", "red", "--out", tmp_path / "oracle")
    assert oracle.status == 0, oracle.err
    assert clue.load_bundle(tmp_path / "oracle").spec == clue.ModelSpec(
        **{
            **clue.load_bundle(bundle_dir).spec.__dict__,
            "weights_sha256": clue.load_bundle(tmp_path / "oracle").spec.weights_sha256,
        }
    )
    start = (*start[:-1], tmp_path / "x")
    assert_one_line(cli(*start, "--exclude", "pink"), 2, "pink")
    assert_one_line(cli(*start, "--recipe", "imagenet"), 2, "cifar10")
    assert_one_line(cli(*start, "--max-seconds", "1"), 2, "--checkpoint")
    assert_one_line(cli(*start, "--peak-lr", "-1"), 2, "peak_lr")
    assert_one_line(cli("train", tmp_path / "none", "--out", tmp_path / "x"), 1, "does not exist")
    cut = cli(*start, "--checkpoint", tmp_path / "run", "--max-seconds", "0")
    assert_one_line(cut, 1, "1 of 2 epochs")
    assert not (tmp_path / "x").exists()
    assert cli(*start, "--checkpoint", tmp_path / "run").status == 0


def test_data(cli, tmp_path, monkeypatch) -> None:
    assert cli("data", "digits", tmp_path / "digits").status == 0
    assert len(list((tmp_path / "digits" / "train" / "zero").iterdir())) > 100
    assert_one_line(cli("data", "digits", tmp_path / "digits"), 2, "not empty")
    monkeypatch.setenv("CLUE_DATA_DIR", str(tmp_path))
    assert_one_line(cli("data", "cifar10", tmp_path / "cifar"), 1, "cannot read")
    assert not (tmp_path / "cifar").exists()
    assert leftovers(tmp_path) == []


def test_no_command_shows_the_help(cli) -> None:
    done = cli()
    assert done.status == 2
    assert "forget" in done.out


def start(*arguments: object, **options: object) -> "subprocess.Popen[str]":
    code = "from clue.cli import main; main()"
    command = [sys.executable, "-c", code, *(str(a) for a in arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_version_and_help_do_not_load_torch() -> None:
    for option, said in (("--version", clue.__version__), ("--help", "import-weights")):
        code = (
            "import sys\nfrom clue.cli import app\nfrom clue.cli._run import run\n"
            f"status = run(app, [{option!r}])\nsys.exit(status or ('torch' in sys.modules) * 9)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_trace(bundle_dir, images_root, tmp_path, number, status) -> None:
    endless = ("--set", "epochs=1000000", "--set", "max_steps=0", "--set", "stop_accuracy=-1")
    process = start("forget", bundle_dir, images_root / "train", "--class", "red", "--out", tmp_path / "out", *endless)
    try:
        deadline = time.monotonic() + 60
        while not leftovers(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert leftovers(tmp_path), "the command never began"
        time.sleep(0.5)
        process.send_signal(number)
        _out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch) -> None:
    import io

    from rich.console import Console

    from clue.cli import _reporter

    clock = [0.0]
    monkeypatch.setattr(_reporter.time, "monotonic", lambda: clock[0])
    for terminal in (False, True):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with _reporter.ConsoleReporter(console) as reporter:
            for second in range(100):
                clock[0] = float(second)
                reporter.progress("training", second / 200, 3725.0, "epoch 1/8")
            shown = console.file.getvalue()
            if terminal:
                reporter._bar.refresh()
                shown = console.file.getvalue()
            reporter.finished("training")
        assert "epoch 1/8, 1:02:05 left" in shown
        if not terminal:
            assert shown.count("\n") == 3
            assert "\x1b" not in shown
