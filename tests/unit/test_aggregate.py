"""Combining updates: what a majority agrees on gets through, what a minority sends does not."""

import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest

from clue.federated import Change, Update, update_to_bytes
from clue_coordinator.aggregate import AggregationSettings, combine, weighted_mean
from clue_coordinator.errors import AggregationError

BASE = "ab" * 32
SHAPES = {"conv.weight": (8, 4, 3, 3), "head.weight": (10, 16)}
TRUTH = {name: np.random.default_rng(9).standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def update_of(tensors: Mapping[str, np.ndarray], samples: int = 100, base: str = BASE, name: str = "bird") -> Update:
    changes = {}
    for tensor, values in tensors.items():
        flat = values.astype(np.float32).ravel()
        where = np.flatnonzero(flat).astype(np.int32)
        changes[tensor] = Change(values.shape, where, flat[where])
    return Update(base, name, samples, changes)


def honest(device: int, samples: int = 100) -> Update:
    """The truth, with noise of two thirds of its length: a cosine of about 0.7 between two devices."""
    rng = np.random.default_rng(device)
    return update_of({n: t + 0.65 * rng.standard_normal(t.shape) for n, t in TRUTH.items()}, samples)


def fleet(count: int, samples: int = 100) -> dict[str, Update]:
    return {f"pi-{device}": honest(device, samples) for device in range(count)}


def likeness(patch: Update) -> float:
    """Cosine of the patch to the truth."""
    dense = [patch.changes[n].dense() if n in patch.changes else np.zeros(s) for n, s in SHAPES.items()]
    one, two = np.concatenate([d.ravel() for d in dense]), np.concatenate([t.ravel() for t in TRUTH.values()])
    return float(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_honest_devices_are_all_used_and_their_mean_is_better_than_each() -> None:
    devices = fleet(6)
    patch, report = combine(devices, base=BASE, forget_class="bird")
    assert report.used == tuple(sorted(devices))
    assert sum(share.weight for share in report.devices.values()) == pytest.approx(1)
    assert likeness(patch) > 0.95 > max(likeness(one) for one in devices.values())
    assert (patch.base, patch.forget_class, patch.contributors) == (BASE, "bird", 6)


def test_the_mean_is_the_weighted_one() -> None:
    one, two = (update_of({"head.weight": np.full((2, 2), v)}) for v in (1.0, 4.0))
    mean = weighted_mean({"a": one, "b": two}, {"a": 2.0, "b": 1.0})
    np.testing.assert_allclose(mean.changes["head.weight"].dense(), np.full((2, 2), 2.0), rtol=1e-6)


def test_sparse_updates_meet_at_the_right_positions() -> None:
    one = Update(BASE, "bird", 1, {"w": Change((9,), np.array([1, 5], np.int32), np.array([2, 4], np.float32))})
    two = Update(BASE, "bird", 1, {"w": Change((9,), np.array([5, 8], np.int32), np.array([2, 6], np.float32))})
    mean = weighted_mean({"a": one, "b": two}, {"a": 1.0, "b": 1.0}).changes["w"]
    assert mean.dense().tolist() == [0, 1, 0, 0, 0, 3, 0, 0, 3]
    assert mean.indices.tolist() == [1, 5, 8]


def noise(device: int) -> Update:
    rng = np.random.default_rng(1000 + device)
    return update_of({n: 1e4 * rng.standard_normal(t.shape) for n, t in TRUTH.items()})


ATTACKS = {
    "noise": noise,
    "the same noise from all": lambda _device: noise(0),
    "sign flipped": lambda device: update_of({n: -c.dense() for n, c in honest(device).changes.items()}),
    "largest numbers": lambda _device: update_of({n: np.full(t.shape, 3e38) for n, t in TRUTH.items()}),
    "one tensor honest, the other noise": lambda device: update_of(
        {"head.weight": TRUTH["head.weight"], "conv.weight": noise(device).changes["conv.weight"].dense() / 1e4}
    ),
    "a tensor that nobody else changes": lambda _device: update_of({"stem": np.full((4,), 1e3)}),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("bad", "good"), [(1, 3), (2, 3), (4, 5)])
def test_a_hostile_minority_changes_nothing(attack: str, bad: int, good: int) -> None:
    devices = fleet(good) | {f"evil-{k}": ATTACKS[attack](k) for k in range(bad)}
    patch, report = combine(devices, base=BASE, forget_class="bird")
    assert report.used == tuple(sorted(fleet(good)))
    alone, _ = combine(fleet(good), base=BASE, forget_class="bird")
    assert likeness(patch) == pytest.approx(likeness(alone), abs=1e-6)
    assert "no majority" in report.devices["evil-0"].reason


def test_a_plain_mean_does_not_stand_that() -> None:
    devices = fleet(3) | {"evil": noise(0)}
    assert likeness(weighted_mean(devices, dict.fromkeys(devices, 1.0))) < 0.3


def test_hostile_halves_that_collude_are_refused_not_believed() -> None:
    devices = fleet(3) | {f"evil-{k}": noise(0) for k in range(3)}
    with pytest.raises(AggregationError, match="6 updates do not agree"):
        combine(devices, base=BASE, forget_class="bird")


def test_devices_that_all_disagree_are_refused() -> None:
    with pytest.raises(AggregationError, match="no majority points the same way"):
        combine({f"pi-{k}": noise(k) for k in range(5)}, base=BASE, forget_class="bird")


def test_a_long_update_of_the_right_direction_is_clipped() -> None:
    long = update_of({n: 50 * c.dense() for n, c in honest(7).changes.items()})
    patch, report = combine(fleet(4) | {"long": long}, base=BASE, forget_class="bird")
    assert report.devices["long"].outcome == "clipped"
    assert patch.norm() < 1.2 * honest(0).norm()


def test_a_small_tensor_that_does_not_vote_is_clipped_too() -> None:
    devices = {
        name: Update(BASE, "bird", 100, dict(update.changes) | dict(update_of({"bias": np.full((4,), 0.1)}).changes))
        for name, update in fleet(4).items()
    }
    sly = dict(devices["pi-0"].changes) | dict(update_of({"bias": np.full((4,), -2.0), "stem": np.ones(9)}).changes)
    patch, report = combine(devices | {"sly": Update(BASE, "bird", 100, sly)}, base=BASE, forget_class="bird")
    assert report.devices["sly"].outcome == "clipped"
    assert np.abs(patch.changes["bias"].dense()).max() <= 0.1 + 1e-6
    assert "stem" not in patch.changes, "what most devices leave alone stays as it is"


def test_nobody_can_claim_a_weight_of_his_own() -> None:
    devices = fleet(4) | {"loud": honest(8, samples=10**9)}
    _, report = combine(devices, base=BASE, forget_class="bird")
    assert report.devices["loud"].weight == pytest.approx(2 / 6)
    assert report.devices["loud"].samples == 10**9


def test_more_samples_weigh_more() -> None:
    devices = {f"pi-{k}": honest(k, samples) for k, samples in enumerate((50, 100, 200, 300))}
    _, report = combine(devices, base=BASE, forget_class="bird")
    assert [round(650 * share.weight) for share in report.devices.values()] == [50, 100, 200, 300]


def test_whatever_does_not_fit_is_dropped_with_its_reason() -> None:
    odd_shape = update_of({"head.weight": TRUTH["head.weight"].reshape(16, 10), "conv.weight": TRUTH["conv.weight"]})
    devices = {name: update_to_bytes(update) for name, update in fleet(3).items()} | {
        "broken": b"PK\x03\x04 not an update",
        "other-model": update_of(TRUTH, base="cd" * 32),
        "other-class": update_of(TRUTH, name="ship"),
        "other-shape": odd_shape,
    }
    patch, report = combine(devices, base=BASE, forget_class="bird")
    assert patch.contributors == 3
    reasons = {name: share.reason for name, share in report.devices.items() if share.outcome == "dropped"}
    assert "cut short" in reasons["broken"]
    assert "made from the model cdcdcdcdcdcdcdcd" in reasons["other-model"]
    assert "forgets 'ship', not 'bird'" in reasons["other-class"]
    assert "has the shape (16, 10)" in reasons["other-shape"]
    assert report.as_dict()["devices"]["broken"]["outcome"] == "dropped"


def test_too_few_devices() -> None:
    with pytest.raises(AggregationError, match="2 usable update\\(s\\), 3 are needed"):
        combine(fleet(2), base=BASE, forget_class="bird")
    with pytest.raises(AggregationError, match=r"0 usable.*broken: the bytes are not an update"):
        combine({"broken": b""}, base=BASE, forget_class="bird")
    patch, _ = combine(fleet(1), base=BASE, forget_class="bird", settings=AggregationSettings(min_devices=1))
    assert patch.contributors == 1


def test_no_more_than_so_many() -> None:
    settings = AggregationSettings(max_devices=3)
    _, report = combine(fleet(5), base=BASE, forget_class="bird", settings=settings)
    assert report.used == ("pi-0", "pi-1", "pi-2")
    assert "3 updates are enough" in report.devices["pi-4"].reason


@pytest.mark.parametrize(
    "wrong", [{"min_devices": 0}, {"agreement": 1.0}, {"clip": 0.5}, {"samples_cap": float("nan")}]
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(AggregationError, match="out of its range"):
        AggregationSettings(**wrong)  # type: ignore[arg-type]


def test_the_module_brings_neither_torch_nor_flower() -> None:
    code = (
        "import sys, clue_coordinator.aggregate\n"
        "print([m for m in ('torch', 'numpy', 'flwr', 'clue') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_combining_needs_no_torch() -> None:
    code = (
        "import sys\nsys.path.insert(0, 'tests/unit')\nfrom test_aggregate import *\n"
        "combine(fleet(3), base=BASE, forget_class='bird')\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"
