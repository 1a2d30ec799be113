"""Checkpoints: a run that was cut off anywhere ends in the model of a run that was not."""

import random
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, TensorDataset
from unlearning_nets import FORGET, forget_set, images_of, trained

import clue
from clue.methods import (
    BatchLoss,
    SgdHyperparameters,
    _registry,
    _resumption,
    _sources,
    _synthesis,
    register_method,
    run_sgd,
)
from clue.methods._checkpoint import DamagedCheckpointError, decode, encode

DEEP = {"steps": 9, "proxies_per_class": 4, "proxy_steps": 2, "batch": 16}
TWO = {"epochs": 2, "stop_accuracy": -1.0}
CASES = {
    "clue": ("clue", {"min_steps": 4, "max_steps": 4}),
    "clue, momentary masks": ("clue", {"min_steps": 6, "max_steps": 5, "refresh_mask": True, "stop_accuracy": -1.0}),
    "clue_plus": ("clue_plus", DEEP),
    "clue_plus, many proxies": ("clue_plus", DEEP | {"proxies_per_class": 20, "steps": 4}),
    "clue_plus, two attempts": ("clue_plus", DEEP | {"depth": 1.0}),
    "clue_plus, shallow": ("clue_plus", {"depth": 0.0}),
    "delete": ("delete", {}),
    "boundary_expanding": ("boundary_expanding", TWO),
    "boundary_shrinking": ("boundary_shrinking", TWO),
    "gradient_ascent": ("gradient_ascent", TWO),
    "lipschitz": ("lipschitz", TWO),
    "random_labels": ("random_labels", {}),
    "random_soft_labels": ("random_soft_labels", {}),
    "salun": ("salun", {"momentum": 0.9}),
    "unsir": ("unsir", {"noise_samples": 4, "noise_steps": 2}),
}


class PowerCutError(Exception):
    """Stands for a power cut."""


class Memory:
    """Keeps every checkpoint; cuts the power after ``survives`` of them."""

    def __init__(self, data=None, every_seconds=0.0, survives=None):
        self.all = [] if data is None else [data]
        self.every_seconds, self.survives = every_seconds, survives

    def save(self, data):
        self.all.append(data)
        if self.survives is not None and len(self.all) > self.survives:
            raise PowerCutError

    def load(self):
        return self.all[-1] if self.all else None


def forget(method, settings, checkpoint=None, *, data=None, seed=0, batch_size=20, model=None, progress=None):
    data = forget_set(50) if data is None else data
    return clue.forget(
        model or trained(), data, FORGET, method, seed, progress,
        hyperparameters=settings, batch_size=batch_size, checkpoint=checkpoint,
    )  # fmt: skip


def assert_same(result, expected):
    ours, theirs = result.model.state_dict(), expected.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("losses", "epochs", "mask_density", "forget_accuracy", "samples", "weights_changed"):
        assert getattr(result.report, name) == getattr(expected.report, name)


@pytest.mark.parametrize("case", CASES)
def test_resuming_at_every_save_gives_the_same_model(case):
    method, settings = CASES[case]
    expected, kept = forget(method, settings), Memory()
    assert_same(forget(method, settings, kept), expected)
    assert len(kept.all) >= 4
    if "two attempts" in case:
        assert expected.report.epochs == settings["steps"]
        assert len(kept.all) > 2 * (settings["steps"] - 1)
    fractions = []
    # Long runs are sampled: both ends, and every ninth between them.
    chosen = kept.all if len(kept.all) <= 9 else [kept.all[0], *kept.all[1:-1:9], kept.all[-1]]
    for data in chosen:
        resumed = forget(method, settings, Memory(data, every_seconds=1e9))
        assert resumed.report.warnings == expected.report.warnings
        assert_same(resumed, expected)
        fractions.append(resumed.report.resumed_at)
    assert 0 < min(fractions) < max(fractions) <= 1
    # The shallow path plans more epochs once it knows how many updates one has.
    assert "shallow" in case or fractions == sorted(set(fractions))


@pytest.mark.parametrize("case", ["clue_plus", "salun"])
def test_the_power_may_fail_at_every_step(case):
    method, settings = CASES[case]
    expected, kept, cuts = forget(method, settings), Memory(), 0
    while True:
        kept.survives = len(kept.all)
        try:
            assert_same(forget(method, settings, kept), expected)
            break
        except PowerCutError:
            cuts += 1
    assert cuts == len(kept.all) >= 4


@pytest.mark.parametrize("case", ["clue_plus", "salun"])
def test_a_callback_may_end_the_run(case):
    method, settings = CASES[case]

    def stop(progress):
        if progress.epoch == 2:
            raise PowerCutError

    kept = Memory()
    with pytest.raises(PowerCutError):
        forget(method, settings, kept, progress=stop)
    resumed = forget(method, settings, kept)
    assert resumed.report.resumed_at > 0
    assert_same(resumed, forget(method, settings))


def test_activations_that_do_not_fit_are_read_anew(monkeypatch):
    monkeypatch.setattr(_sources, "_MOST_BYTES", 0)
    expected, kept = forget("clue_plus", DEEP), Memory()
    forget("clue_plus", DEEP, kept)
    for data in kept.all[1::3]:
        assert_same(forget("clue_plus", DEEP, Memory(data)), expected)


class Shaken(Dataset):
    """Draws from the generators of torch and of Python at every reading."""

    def __init__(self):
        self.images = images_of(FORGET, 50, seed=1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + 0.1 * torch.randn(3, 8, 8) + random.gauss(0, 0.1)


@pytest.mark.parametrize("case", ["clue_plus", "salun", "clue_plus, shallow"])
@pytest.mark.parametrize("own_generator", [False, True])
def test_a_loader_of_the_users_is_put_back_too(monkeypatch, case, own_generator):
    monkeypatch.setattr(_sources, "_MOST_BYTES", 0)
    method, settings = CASES[case]

    def loader():
        generator = torch.Generator().manual_seed(5) if own_generator else None
        return DataLoader(Shaken(), batch_size=16, shuffle=True, generator=generator)

    expected, kept = forget(method, settings, data=loader()), Memory()
    forget(method, settings, kept, data=loader())
    for data in (kept.all[0], kept.all[len(kept.all) // 2], kept.all[-1]):
        resumed = forget(method, settings, Memory(data, every_seconds=1e9), data=loader())
        assert resumed.report.resumed_at > 0
        assert_same(resumed, expected)


CHILD = """
import os, signal, sys
sys.path[:0] = [sys.argv[3]]
import clue
from test_checkpoint import CASES, forget
class Killed(clue.FileCheckpoint):
    saves = 0
    def save(self, data):
        Killed.saves += 1
        if Killed.saves == 5:  # a power cut while the fifth is being written
            self._temporary.write_bytes(data[:1000])
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(data)
forget(*CASES[sys.argv[1]], Killed(sys.argv[2], every_seconds=0))
"""


def test_a_process_killed_with_9_is_continued_by_another(tmp_path):
    checkpoint = clue.FileCheckpoint(tmp_path / "job.checkpoint", every_seconds=0)
    command = [sys.executable, "-c", CHILD, "clue_plus", str(checkpoint.path), str(Path(__file__).parent)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    resumed = forget(*CASES["clue_plus"], checkpoint)
    # Of twelve proxies one batch is made: one save, then three within the nine steps.
    assert resumed.report.resumed_at == pytest.approx(0.3 + 0.7 * 3 / 9)
    assert_same(resumed, forget(*CASES["clue_plus"]))
    checkpoint.delete()
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "seed": {"seed": 1},
    "hyperparameters": {"settings": {"lr": 0.02}},
    "batch_size": {"batch_size": 21},
    "model": {"model": trained(exclude=0)},
    "forget_images": {"data": forget_set(49)},
    "forget_images_looked_at": {"data": TensorDataset(images_of(FORGET, 50, seed=1).flip(3))},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_run_is_ignored(name):
    kept = Memory()
    forget("delete", {}, kept)
    other = {"settings": {}} | OTHERS[name]
    result = forget("delete", other.pop("settings"), Memory(kept.all[-1], every_seconds=1e9), **other)
    assert result.report.resumed_at == 0.0
    assert [line for line in result.report.warnings if "of another run" in line and name in line]
    assert_same(result, forget("delete", (OTHERS[name]).get("settings", {}), **other))


def test_a_checkpoint_of_another_method_or_version_is_ignored(monkeypatch):
    kept = Memory()
    forget("delete", {}, kept)
    (line,) = forget("random_labels", {}, Memory(kept.all[-1])).report.warnings
    assert "hyperparameters, method" in line
    monkeypatch.setattr(_resumption, "__version__", "0.0.0")
    assert "(clue differ" in forget("delete", {}, Memory(kept.all[-1])).report.warnings[0]


@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 100, "truncated", "flipped"])
def test_a_damaged_checkpoint_is_ignored(data):
    kept = Memory()
    forget("delete", {}, kept)
    whole = kept.all[-1]
    if data == "truncated":
        data = whole[:-1]
    elif data == "flipped":
        data = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    result = forget("delete", {}, Memory(data, every_seconds=1e9))
    assert result.report.resumed_at == 0.0
    assert len(result.report.warnings) == 1
    assert "damaged, started over" in result.report.warnings[0]
    assert_same(result, forget("delete", {}))


WHOLE = encode(
    {"format": 1, "numbers": [0.1, float("inf")]},
    {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([True]), "c": torch.tensor(7), "d": torch.zeros(0)},
)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(place, change):
    with pytest.raises(DamagedCheckpointError):
        decode(WHOLE[:place] + bytes([WHOLE[place] ^ change]) + WHOLE[place + 1 :])


@given(st.integers(0, len(WHOLE) - 1))
def test_no_truncated_file_passes(length):
    with pytest.raises(DamagedCheckpointError):
        decode(WHOLE[:length])


def test_tensors_that_share_memory_or_are_views_are_kept():
    whole = torch.arange(12.0).reshape(3, 4)
    given_ = {"whole": whole, "row": whole[1], "turned": whole.T, "again": whole, "half": whole.bfloat16()}
    header, tensors = decode(encode({"format": 1}, given_))
    assert header == {"format": 1}
    assert all(torch.equal(tensors[name], given_[name]) for name in given_)


def test_a_checkpoint_that_cannot_be_written_or_read_costs_nothing_but_itself():
    class Broken(Memory):
        def save(self, data):
            raise OSError(28, "No space left on device")

        def load(self):
            raise RuntimeError("the seal is broken")

    result = forget("delete", {}, Broken())
    assert [line.split(":")[0] for line in result.report.warnings] == [
        "the checkpoint cannot be read, started over",
        "a checkpoint could not be written",
    ]
    assert_same(result, forget("delete", {}))


@pytest.mark.parametrize("method", ["influence", "selective_synaptic_dampening"])
def test_methods_without_checkpoints_say_so(method):
    kept = Memory()
    assert f"{method} cannot be resumed" in forget(method, {}, kept).report.warnings[0]
    assert kept.all == []
    assert forget(method, {}).report.warnings == ()


def test_a_method_with_a_state_of_its_own_can_decline(monkeypatch):
    monkeypatch.setattr(_registry, "_METHODS", dict(_registry._METHODS))

    @register_method("stateful", SgdHyperparameters)
    def run(job, hp):
        run_sgd(job, hp, lambda x: BatchLoss(job.student(x).mean(), job.student(x)), resumable=False)

    kept = Memory()
    assert "stateful cannot be resumed" in forget("stateful", {}, kept).report.warnings[0]
    assert kept.all == []


def test_a_method_with_two_loops_goes_on_in_the_second(monkeypatch):
    monkeypatch.setattr(_registry, "_METHODS", dict(_registry._METHODS))

    @register_method("double", SgdHyperparameters)
    def run(job, hp):
        for sign in (1, -1):
            run_sgd(job, hp, lambda x, sign=sign: BatchLoss(sign * job.student(x).mean(), job.student(x)))

    expected, kept = forget("double", {}), Memory()
    forget("double", {}, kept)
    for data in kept.all[::4]:
        assert_same(forget("double", {}, Memory(data, every_seconds=1e9)), expected)


def test_only_what_changed_is_kept():
    kept, model = Memory(), trained()
    result = forget("clue_plus", DEEP, kept, model=model)
    _, tensors = decode(kept.all[-1])
    changed = {n for n, p in result.model.state_dict().items() if not torch.equal(p, model.state_dict()[n])}
    assert {name.removeprefix("student.") for name in tensors if name.startswith("student.")} == changed
    assert 0 < len(changed) < len(list(model.parameters()))


def test_proxies_that_are_made_are_not_made_again(monkeypatch):
    settings, kept, made = DEEP | {"proxies_per_class": 20}, Memory(), []
    expected = forget("clue_plus", settings, kept)
    optimise = _synthesis._optimise
    monkeypatch.setattr(_synthesis, "_optimise", lambda *given: made.append(1) or optimise(*given))
    for data, batches in ((kept.all[1], 2), (kept.all[3], 0), (kept.all[4], 0), (kept.all[-1], 0)):
        again = Memory(data)
        assert_same(forget("clue_plus", settings, again), expected)
        assert (made == []) == (batches == 0)
        made.clear()
        # The proxies live on in the checkpoints of the run that was resumed.
        assert_same(forget("clue_plus", settings, Memory(again.all[-1])), expected)
        assert made == []


def test_files_are_private_and_replaced_whole(tmp_path):
    checkpoint = clue.FileCheckpoint(tmp_path / "c")
    assert checkpoint.load() is None
    (tmp_path / ".c.new").write_bytes(b"left by a process that was killed")
    (tmp_path / ".c.new").chmod(0o644)
    checkpoint.save(b"one")
    checkpoint.save(b"two")
    assert checkpoint.load() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    checkpoint.delete()
    checkpoint.delete()
    assert checkpoint.load() is None
    with pytest.raises(ValueError, match="every_seconds"):
        clue.FileCheckpoint(tmp_path / "c", every_seconds=-1)


def test_a_slow_disk_is_written_to_less_often(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(_resumption.time, "monotonic", lambda: clock[0])

    class Slow(Memory):
        def save(self, data):
            super().save(data)
            clock[0] += 0.5

    class Ticking(Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            clock[0] += 1.0
            return images_of(FORGET, 50, seed=1)[index]

    kept = Slow(every_seconds=10)
    forget("delete", {"epochs": 12}, kept, data=Ticking())
    # 600 seconds and the first look's: one after ten, then one in fifty.
    assert 10 <= len(kept.all) <= 13


def test_the_report_is_plain_data():
    report = forget("delete", {}, Memory()).report
    assert asdict(report)["resumed_at"] == 0.0
