"""LiveModel: one whole model for every answer, whatever happens to the store, and never a forgotten class."""

import gc
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import live_writer
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from live_writer import store_of, swap
from PIL import Image
from torch import Tensor, nn

import clue
import clue_agent
from clue._head import overwrite_row
from clue.errors import BundleError, DataError
from clue.losses import free_energy as energy_of_losses
from clue_agent import LiveModel, Prediction
from clue_agent.calibration import free_energy, free_energy_threshold, stored_threshold
from clue_agent.errors import AgentError, StoreError
from clue_agent.loaded import LoadedModel
from clue_agent.store import ModelStore, StoredModel

FACTORY = "test_live:tiny"
RED = 0
# Enough for four easy classes.
FEW = {"steps": 30, "proxies_per_class": 8, "proxy_steps": 2}


def tiny(num_classes: int, outputs: int | None = None) -> nn.Module:
    """A model that loads and answers in no time: the mean colour, then a linear head."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, outputs or num_classes))


def frame_of(bundle_images: Path, name: str, index: int = 0) -> Path:
    return bundle_images / "test" / name / f"{index}.png"


@pytest.fixture
def home(tmp_path: Path, bundle_dir: Path) -> Path:
    """An agent's home with the trained model."""
    store_of(tmp_path / "home").install(bundle_dir)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def hidden_dir(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that forgot red on paper: red still wins among all logits."""
    bundle = clue.load_bundle(bundle_dir)
    folder = tmp_path_factory.mktemp("hidden")
    clue.save_bundle(folder, bundle.model, bundle.spec.with_forgotten("red"))
    return folder


@pytest.fixture(scope="session")
def overwritten_dir(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose row of red in the head is overwritten, as clue_plus does: red never wins."""
    bundle = clue.load_bundle(bundle_dir)
    assert overwrite_row(bundle.model, RED, 5.0)
    folder = tmp_path_factory.mktemp("overwritten")
    clue.save_bundle(folder, bundle.model, bundle.spec.with_forgotten("red"))
    return folder


@pytest.fixture
def two_tiny(tmp_path: Path) -> tuple[Path, Path]:
    """Two models that answer a red frame with other labels, confidences and energies; the second forgot red."""
    folders = []
    for name, heads, forgotten in (("first", (9.0, 1.0, 2.0, 0.0), ()), ("second", (5.0, 0.0, 4.0, 1.0), ("red",))):
        model = tiny(4)
        with torch.no_grad():
            model[2].weight.copy_(torch.tensor(heads)[:, None].expand(4, 3) / 3)
            model[2].bias.zero_()
        spec = clue.ModelSpec(
            FACTORY,
            ("red", "green", "blue", "stripes"),
            (8, 8),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            forgotten=forgotten,
        )
        clue.save_bundle(tmp_path / name, model, spec)
        folders.append(tmp_path / name)
    return folders[0], folders[1]


WHITE = np.full((8, 8, 3), 255, np.uint8)


def expected_of(bundle: Path) -> Prediction:
    """What a bundle answers to a white frame under ``next_best``, worked out by hand from its head."""
    model = clue.load_bundle(bundle, allowed_factories=[FACTORY])
    logits = model.model.state_dict()["2.weight"].double().sum(dim=1).tolist()
    retained = [i for i, name in enumerate(model.spec.classes) if name not in model.spec.forgotten]
    total = math.log(sum(math.exp(logits[i]) for i in retained))
    best = max(retained, key=lambda i: logits[i])
    return Prediction(model.spec.classes[best], best, math.exp(logits[best] - total), -total, model.digest)


def same(one: Prediction, other: Prediction) -> bool:
    numbers = (one.confidence, one.free_energy)
    return (one.label, one.index, one.model_digest) == (other.label, other.index, other.model_digest) and (
        numbers == pytest.approx((other.confidence, other.free_energy), rel=1e-5)
    )


def wait_until(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class Loop(threading.Thread):
    """An app's frame loop: predicts without end, keeps every answer, and the error that ended it if one did."""

    def __init__(self, predict: Callable[[], Prediction]) -> None:
        super().__init__(daemon=True)
        self._predict = predict
        self._stop_event = threading.Event()
        self.answers: list[Prediction] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stop_event.is_set():
                self.answers.append(self._predict())
                time.sleep(0.0005)
        except Exception as error:
            self.error = error

    def more(self, count: int = 5) -> None:
        """Wait for ``count`` answers that begin after now."""
        wanted = len(self.answers) + 1 + count
        wait_until(lambda: self.error is not None or len(self.answers) >= wanted)
        assert self.error is None, self.error

    def __enter__(self) -> "Loop":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self.join(20)
        assert self.error is None, self.error


# Hot swap


@pytest.mark.parametrize("background", [True, False])
def test_two_hundred_swaps_by_another_process_under_two_frame_loops(
    tmp_path: Path, two_tiny: tuple[Path, Path], background: bool
) -> None:
    home = tmp_path / "home"
    store_of(home).install(two_tiny[0])
    expected = {found.model_digest: found for found in map(expected_of, two_tiny)}
    assert {found.label for found in expected.values()} == {"red", "blue"}
    with LiveModel(
        home,
        on_forgotten="next_best",
        allowed_factories=[FACTORY],
        background=background,
        check_every=0.001 if background else 0.0,
    ) as live:
        with Loop(lambda: live.predict(WHITE)) as one, Loop(lambda: live.predict_batch([WHITE, WHITE])[1]) as other:
            command = [sys.executable, live_writer.__file__, str(home), *map(str, two_tiny), "200"]
            subprocess.run(command, check=True, timeout=120)
            one.more(), other.more()
        assert live.stale_reason is None
        live.refresh()
        assert live.digest == store_of(home).spec()[1]
    for loop in (one, other):
        digests = [answer.model_digest for answer in loop.answers]
        changes = sum(before != after for before, after in pairwise(digests))
        # How many of them a loop meets depends on how busy the machine is.
        assert changes > 5
        assert set(digests) == set(expected)
        wrong = [answer for answer in loop.answers if not same(answer, expected[answer.model_digest])]
        assert wrong == []


def test_once_forgotten_never_returned_again(home: Path, overwritten_dir: Path, images_root: Path) -> None:
    red = frame_of(images_root, "red")
    with LiveModel(home, on_forgotten="next_best", check_every=0.02) as live:
        assert live.predict(red).label == "red"
        before = live.digest
        with Loop(lambda: live.predict(red)) as loop:
            digest = swap(store_of(home), overwritten_dir)
            wait_until(lambda: live.digest == digest)
            loop.more()
        assert live.forgotten == ("red",)
        assert live.classes.index("red") == RED
    first_new = [answer.model_digest for answer in loop.answers].index(digest)
    assert {answer.model_digest for answer in loop.answers[:first_new]} <= {before}
    assert {answer.model_digest for answer in loop.answers[first_new:]} == {digest}
    assert {answer.index for answer in loop.answers[first_new:]}.isdisjoint({RED, None})


def test_a_call_keeps_the_model_it_began_with(tmp_path: Path, two_tiny: tuple[Path, Path]) -> None:
    home = tmp_path / "home"
    store_of(home).install(two_tiny[0])
    old, new = map(expected_of, two_tiny)
    with LiveModel(home, on_forgotten="next_best", allowed_factories=[FACTORY], check_every=60) as live:

        def while_it_computes(_module: nn.Module, _inputs: object, _output: object) -> None:
            hook.remove()
            swap(store_of(home), two_tiny[1])
            assert live.refresh()

        loaded = live._loaded
        assert loaded is not None
        hook = loaded.model.register_forward_hook(while_it_computes)
        assert same(live.predict(WHITE), old)
        assert same(live.predict(WHITE), new)


def test_refresh_is_at_once_and_says_whether_the_model_changed(home: Path, overwritten_dir: Path) -> None:
    with LiveModel(home, check_every=3600) as live:
        assert not live.refresh()
        digest = swap(store_of(home), overwritten_dir)
        assert live.digest != digest
        assert live.refresh()
        assert (live.digest, live.forgotten) == (digest, ("red",))
        assert not live.refresh()


def test_going_to_the_other_copy_of_the_same_model_loads_nothing(home: Path) -> None:
    store = store_of(home)
    with LiveModel(home, check_every=3600) as live:
        before = live._loaded
        assert before is not None
        store._point_to("b")
        assert not live.refresh()
        after = live._loaded
        assert after is not None
        assert after.model is before.model
        assert after.fingerprint == store.fingerprint() != before.fingerprint


# What an app answers


def labels_of(live: LiveModel, images_root: Path) -> dict[str, Counter[str | None]]:
    found = {}
    for name in ("red", "green", "blue", "stripes"):
        frames = sorted((images_root / "test" / name).iterdir())
        found[name] = Counter(answer.label for answer in live.predict_batch(frames))
    return found


def test_unknown_where_the_forgotten_class_would_win(home: Path, hidden_dir: Path, images_root: Path) -> None:
    swap(store_of(home), hidden_dir)
    with LiveModel(home) as live:
        found = labels_of(live, images_root)
        one = live.predict(frame_of(images_root, "red"))
    assert found["red"] == Counter({None: 10})
    assert all(found[name] == Counter({name: 10}) for name in ("green", "blue", "stripes"))
    assert one.index is None
    with LiveModel(home, on_forgotten="next_best") as live:
        found = labels_of(live, images_root)
    assert found["red"].keys().isdisjoint({None, "red"})


def test_unknown_by_free_energy_where_the_row_is_overwritten(
    home: Path, bundle_dir: Path, overwritten_dir: Path, images_root: Path
) -> None:
    swap(store_of(home), overwritten_dir)
    greens = sorted((images_root / "test" / "green").iterdir())
    reds = sorted((images_root / "test" / "red").iterdir())
    with LiveModel(home) as live:
        # No threshold was measured, and red cannot win: the best of the others is all there is to say.
        assert {answer.label for answer in live.predict_batch(reds)}.isdisjoint({None, "red"})
        energies = [answer.free_energy for answer in live.predict_batch(greens)]
    threshold = free_energy_threshold(energies, 0.5)
    calibration = {"free_energy_threshold": threshold, "quantile": 0.5, "samples": len(energies)}
    swap(store_of(home), bundle_dir)
    swap(store_of(home), overwritten_dir, calibration)
    with LiveModel(home) as live:
        for answer in live.predict_batch([*greens, *reds]):
            assert (answer.label is None) == (answer.free_energy > threshold)
        assert Counter(answer.label for answer in live.predict_batch(greens))["green"] == 6
    with LiveModel(home, on_forgotten="next_best") as live:
        assert None not in {answer.label for answer in live.predict_batch([*greens, *reds])}


def test_a_model_that_really_forgot(
    home: Path, bundle: clue.ModelBundle, reds: torch.utils.data.TensorDataset, images_root: Path, tmp_path: Path
) -> None:
    forgot = clue.forget(bundle.model, reds, RED, method="clue_plus", hyperparameters=FEW)
    clue.save_bundle(tmp_path / "forgot", forgot.model, bundle.spec.with_forgotten("red"))
    swap(store_of(home), tmp_path / "forgot")
    for policy in ("unknown", "next_best"):
        with LiveModel(home, on_forgotten=policy) as live:  # type: ignore[arg-type]
            found = labels_of(live, images_root)
        assert not any("red" in counts for counts in found.values())
        assert all(found[name][name] >= 8 for name in ("green", "blue", "stripes"))


class Fixed(nn.Module):
    """Gives the same logits, whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, batch: Tensor) -> Tensor:
        return self.logits.expand(len(batch), -1)


def loaded_with(logits: Tensor, forgotten: set[int], threshold: float | None = None) -> LoadedModel:
    names = tuple(f"class-{index}" for index in range(len(logits)))
    absent = [index in forgotten for index in range(len(logits))]
    return LoadedModel(
        model=Fixed(logits),
        spec=clue.ModelSpec("resnet20", names, (1, 1), forgotten=tuple(names[index] for index in sorted(forgotten))),
        digest="ab" * 32,
        fingerprint=("a", 1, 1),
        threshold=threshold,
        forgotten=frozenset(forgotten),
        retained=torch.tensor([index for index, gone in enumerate(absent) if not gone], dtype=torch.int64),
        mask=torch.tensor(absent),
        mean=torch.zeros(1, 3, 1, 1),
        std=torch.ones(1, 3, 1, 1),
    )


@given(
    logits=st.lists(st.floats(width=32), min_size=2, max_size=6),
    forgotten=st.sets(st.integers(0, 5)),
    threshold=st.none() | st.floats(-10, 10),
)
@example(logits=[-4.475341453692836e-22, 0.0], forgotten=set(), threshold=None)  # equal once they are probabilities
def test_no_logits_whatever_bring_a_forgotten_class_back(
    logits: list[float], forgotten: set[int], threshold: float | None
) -> None:
    forgotten = {index for index in forgotten if index < len(logits)}
    loaded = loaded_with(torch.tensor(logits), forgotten, threshold)
    frame = np.zeros((1, 1, 3), np.uint8)
    retained = [index for index in range(len(logits)) if index not in forgotten]
    (answer,) = loaded.answer([frame], "next_best")
    assert answer.index in (retained or [None])
    (cautious,) = loaded.answer([frame], "unknown")
    assert cautious.index in (None, answer.index)
    assert (cautious.label is None) == (cautious.index is None)
    if retained and all(map(math.isfinite, logits)):
        assert logits[answer.index] == max(logits[index] for index in retained)
        wins = logits.index(max(logits)) in forgotten
        over = threshold is not None and answer.free_energy > threshold
        assert (cautious.index is None) == (wins or over or not math.isfinite(answer.free_energy))
    masked = loaded.masked_logits(torch.zeros(1, 3, 1, 1))[0].tolist()
    for index, value in enumerate(masked):
        assert value == (-math.inf if index in forgotten else pytest.approx(logits[index], nan_ok=True))


def test_logits_of_a_batch(home: Path, hidden_dir: Path, images_root: Path, bundle: clue.ModelBundle) -> None:
    swap(store_of(home), hidden_dir)
    with LiveModel(home) as live:
        data = clue.data.image_folder(images_root / "test", live.spec)
        batch = torch.stack([data[index][0] for index in range(6)])
        logits = live(batch)
        with torch.no_grad():
            plain = bundle.model(batch)
        assert torch.equal(logits[:, RED], torch.full((6,), -math.inf))
        assert torch.allclose(logits[:, 1:], plain[:, 1:])
        logits[0, 0] = 1.0  # the caller's own to change
        assert live.predict_batch([]) == []


def test_every_kind_of_frame_is_seen_as_the_model_was_trained(home: Path, images_root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((8, 8), (31, 17)):
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        path = tmp_path / f"{shape[0]}" / "red" / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
        still = pixels.copy()
        still.setflags(write=False)
        frames = [
            path,
            str(path),
            Image.open(path),
            pixels,
            still,
            np.ascontiguousarray(pixels[..., ::-1])[..., ::-1],  # a BGR camera's frame turned round
            torch.from_numpy(pixels).permute(2, 0, 1),
        ]
        with LiveModel(home) as live:
            loaded = live._loaded
            assert loaded is not None
            trained_on, _ = clue.data.image_folder(path.parent.parent, live.spec)[0]
            batch = loaded.batch(frames)
            answers = live.predict_batch(frames)
        assert torch.allclose(batch, trained_on.expand_as(batch), atol=1e-6)
        assert len(answers) == len(frames)
        assert {answer.label for answer in answers} == {answers[0].label}


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros((8, 8, 3), dtype=torch.uint8),
        None,
        "/nowhere/at/all.png",
    ],
)
def test_what_is_no_frame(home: Path, frame: object) -> None:
    with LiveModel(home) as live, pytest.raises(DataError, match="cannot read"):
        live.predict(frame)  # type: ignore[arg-type]


# Faults while an app runs


@contextmanager
def link_removed(home: Path) -> Iterator[None]:
    link = store_of(home).current
    target = link.readlink()
    link.unlink()
    yield
    link.symlink_to(target)


@contextmanager
def foreign_link(home: Path) -> Iterator[None]:
    link = store_of(home).current
    target = link.readlink()
    link.unlink()
    link.symlink_to("/etc")
    yield
    link.unlink()
    link.symlink_to(target)


@contextmanager
def slots_gone(home: Path) -> Iterator[None]:
    (home / "model").rename(home / "gone")
    yield
    (home / "gone").rename(home / "model")


@contextmanager
def folder_unreadable(home: Path) -> Iterator[None]:
    home.chmod(0)
    root = os.geteuid() == 0
    if root:  # root may read everything
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        home.chmod(0o700)


@contextmanager
def everything_erased(home: Path) -> Iterator[None]:
    shutil.copytree(home, home.with_name("copy"), symlinks=True)
    ring = store_of(home).ring
    assert all(ring.destroy(name) for name in ring.names())
    shutil.rmtree(home)
    yield
    home.with_name("copy").rename(home)


@contextmanager
def spec_damaged(home: Path) -> Iterator[None]:
    for slot in "ab":
        path = home / "model" / slot / "model.json"
        path.rename(path.with_name("whole"))
        path.write_text("{")
    yield
    for slot in "ab":
        (home / "model" / slot / "whole").replace(home / "model" / slot / "model.json")


FAULTS = {
    link_removed: "current is missing",
    foreign_link: "not a slot",
    slots_gone: "missing",
    folder_unreadable: "current is missing|Permission denied",
    everything_erased: "missing",
    spec_damaged: "not valid JSON",
}


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    own = (record for record in caplog.records if record.name == "clue_agent.live")
    return [record.getMessage() for record in own if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_app_goes_on_says_so_once_and_recovers(
    home: Path,
    overwritten_dir: Path,
    images_root: Path,
    fault: Callable[[Path], AbstractContextManager[None]],
    background: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    frame = Image.open(frame_of(images_root, "green"))
    frame.load()
    with LiveModel(home, check_every=0.01, background=background) as live:
        before = live.digest
        with Loop(lambda: live.predict(frame)) as loop:
            with fault(home):
                wait_until(lambda: live.stale_reason is not None)
                time.sleep(0.15)  # some looks more, each of which fails
                loop.more()
                assert live.digest == before
                reason = live.stale_reason
                assert reason is not None
                assert "\n" not in reason
            wait_until(lambda: live.stale_reason is None)
            digest = swap(store_of(home), overwritten_dir)
            wait_until(lambda: live.digest == digest)
            loop.more()
    assert len(errors_in(caplog)) == 1, errors_in(caplog)
    assert reason in errors_in(caplog)[0]
    assert re.search(FAULTS[fault], reason)
    assert {answer.label for answer in loop.answers} == {"green"}


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_new_model_that_is_damaged_does_not_replace_one_that_is_whole(
    home: Path, overwritten_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(home)
    frame = np.zeros((8, 8, 3), np.uint8)
    with LiveModel(home, check_every=0.01) as live:
        before = live.digest
        with Loop(lambda: live.predict(frame)) as loop:
            store.write("b", (overwritten_dir / "model.json").read_bytes(), b"not what the spec says")
            store._point_to("b")
            wait_until(lambda: live.stale_reason is not None)
            loop.more()
            assert live.digest == before
            assert "do not match their digest" in str(live.stale_reason)
            store.repair()
            wait_until(lambda: live.stale_reason is None)
            loop.more()
    assert {answer.model_digest for answer in loop.answers} == {before}
    assert len(errors_in(caplog)) == 1


def test_the_slot_in_use_is_damaged_and_its_key_destroyed_while_the_app_runs(home: Path) -> None:
    store = store_of(home)
    frame = np.zeros((8, 8, 3), np.uint8)
    with LiveModel(home, check_every=0.01) as live, Loop(lambda: live.predict(frame)) as loop:
        damage(store.slot("a") / "weights.sealed")
        loop.more()
        # An app that starts now takes the copy in the other slot, which holds the very same model.
        with LiveModel(home) as other:
            assert other.digest == live.digest
        assert all(store.ring.destroy(name) for name in store.ring.names())
        assert not live.refresh()
        loop.more()
        assert live.stale_reason is None  # what it serves is what the store has in use
        with pytest.raises(StoreError, match="is erased"):
            LiveModel(home)


def test_another_model_in_the_other_slot_is_no_substitute(home: Path, overwritten_dir: Path, bundle_dir: Path) -> None:
    store = store_of(home)
    swap(store, overwritten_dir)
    old = (bundle_dir / "model.json").read_bytes(), (bundle_dir / "model.safetensors").read_bytes()
    store.write(store.other_slot(), *old)
    damage(store.slot(store.current_slot()) / "weights.sealed")
    with pytest.raises(StoreError, match="cannot be read"):
        LiveModel(home)


def test_a_slot_that_is_erased_in_the_middle_of_reading_it(
    home: Path, overwritten_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(home)
    whole_read = type(store).read
    swapped = []

    def read(self: ModelStore, slot: str | None = None) -> StoredModel:
        if swapped:
            return whole_read(self, slot)
        swapped.append("")
        swapped[0] = swap(store_of(home), overwritten_dir)
        assert not store.slot("a").exists()
        return whole_read(self, "a")

    monkeypatch.setattr(type(store), "read", read)
    with LiveModel(home) as live:
        assert [live.digest] == swapped
        assert live.stale_reason is None


def write_model(store_home: Path, folder: Path, spec: clue.ModelSpec, model: nn.Module) -> None:
    clue.save_bundle(folder, model, spec)
    swap(store_of(store_home), folder)


@pytest.mark.parametrize(
    ("arguments", "allowed", "reason"),
    [({}, False, "allowed factories"), ({"outputs": 3}, True, "4 finite logits")],
)
def test_a_new_model_that_cannot_answer(
    home: Path, tmp_path: Path, arguments: dict[str, int], allowed: bool, reason: str
) -> None:
    spec = clue.ModelSpec(FACTORY, ("red", "green", "blue", "stripes"), (8, 8), arguments=arguments)
    with LiveModel(home, check_every=3600, allowed_factories=[FACTORY] if allowed else []) as live:
        before = live.digest
        write_model(home, tmp_path / "odd", spec, tiny(4, **arguments))
        assert not live.refresh()
        assert reason in str(live.stale_reason)
        assert live.digest == before
        assert live.predict(WHITE).model_digest == before


def test_a_large_damaged_file_is_not_read_at_every_look(
    home: Path, overwritten_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(home)
    reads = []
    whole_read = type(store).read

    def read(self: ModelStore, slot: str | None = None) -> StoredModel:
        reads.append(slot)
        return whole_read(self, slot)

    with LiveModel(home, check_every=0, background=False) as live:
        swap(store, overwritten_dir)
        damage(store.slot(store.current_slot()) / "weights.sealed")
        monkeypatch.setattr(type(store), "read", read)
        deadline = time.monotonic() + 0.5
        calls = 0
        while time.monotonic() < deadline:
            live.predict(WHITE)
            calls += 1
        assert live.stale_reason is not None
        assert 0 < len(reads) <= 8
        assert calls > len(reads)


# Its life


def test_closed(home: Path) -> None:
    live = LiveModel(home)
    assert live.digest[:16] in repr(live)
    live.close()
    live.close()
    assert "closed" in repr(live)
    for use in (lambda: live.predict(WHITE), lambda: live.digest, live.refresh, lambda: live(torch.zeros(1, 3, 8, 8))):
        with pytest.raises(AgentError, match="closed"):
            use()
    assert watchers() == []


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "clue-live-model"]


def test_a_model_that_nobody_holds_goes_and_its_thread_too(home: Path) -> None:
    live = LiveModel(home, check_every=0.01)
    assert len(watchers()) == 1
    del live
    gc.collect()
    wait_until(lambda: watchers() == [])


def test_a_forked_child_follows_the_store_too(home: Path, overwritten_dir: Path) -> None:
    with LiveModel(home, check_every=0.02) as live:
        before = live.predict(WHITE).model_digest
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                deadline = time.monotonic() + 10
                while live.predict(WHITE).model_digest == before and time.monotonic() < deadline:
                    time.sleep(0.01)
                os._exit(0 if live.digest != before else 3)
            finally:
                os._exit(4)
        os.read(ready[0], 1)
        swap(store_of(home), overwritten_dir)
        os.write(go[1], b"x")
        _, status = os.waitpid(child, 0)
        for descriptor in (*ready, *go):
            os.close(descriptor)
        assert os.waitstatus_to_exitcode(status) == 0


def test_an_app_in_a_process_of_its_own_just_ends(home: Path) -> None:
    code = (
        "import sys, clue_agent, clue_agent.calibration\n"
        "print('torch' in sys.modules, clue_agent.Prediction.__name__)\n"
        "live = clue_agent.LiveModel(sys.argv[1], check_every=0.001)\n"
        "import numpy as np\n"
        "print(live.predict(np.zeros((8, 8, 3), np.uint8)).model_digest)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # Importing the package brings no torch: the daemon lives in it too.
    assert done.stdout.split() == ["False", "Prediction", store_of(home).spec()[1]]


def test_names_of_the_package() -> None:
    assert clue_agent.LiveModel is LiveModel
    assert {"LiveModel", "Prediction"} <= set(dir(clue_agent))
    with pytest.raises(AttributeError, match="nothing"):
        clue_agent.nothing  # noqa: B018


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="clue-agent init"):
        LiveModel(tmp_path)


def test_a_factory_that_is_not_allowed(tmp_path: Path, two_tiny: tuple[Path, Path]) -> None:
    store_of(tmp_path / "home").install(two_tiny[0])
    with pytest.raises(BundleError, match="allowed factories"):
        LiveModel(tmp_path / "home")


@pytest.mark.parametrize(
    "arguments",
    [{"on_forgotten": "guess"}, {"check_every": -1}, {"check_every": math.nan}, {"check_every": 0, "background": True}],
)
def test_arguments_out_of_range(home: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LiveModel(home, **arguments)  # type: ignore[arg-type]


# The threshold


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_the_threshold_is_a_measured_energy_of_the_right_rank(energies: list[float], quantile: float) -> None:
    threshold = free_energy_threshold(energies, quantile)
    rank = min(math.ceil((len(energies) + 1) * quantile), len(energies))
    assert threshold in energies
    assert sum(energy < threshold for energy in energies) < rank <= sum(energy <= threshold for energy in energies)


def test_the_threshold_holds_for_new_images_on_average() -> None:
    rng = np.random.default_rng(0)
    accepted = [
        float((rng.normal(size=2000) <= free_energy_threshold(rng.normal(size=40).tolist(), 0.9)).mean())
        for _ in range(200)
    ]
    assert np.mean(accepted) == pytest.approx(37 / 41, abs=0.01)


@pytest.mark.parametrize(
    ("energies", "quantile"), [([], 0.95), ([1.0, math.nan], 0.95), ([math.inf], 0.95), ([1.0], 0.0), ([1.0], 1.1)]
)
def test_no_threshold_of_nonsense(energies: list[float], quantile: float) -> None:
    with pytest.raises(ValueError, match=r"finite|quantile|at least one"):
        free_energy_threshold(energies, quantile)


def test_free_energy_leaves_absent_classes_out() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, 100.0, 0.0]])
    assert torch.allclose(free_energy(logits), energy_of_losses(logits))
    assert torch.allclose(free_energy(logits, {1}), energy_of_losses(logits[:, [0, 2]]))
    assert free_energy(logits, {0, 1, 2}).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, [1.0]])
def test_a_calibration_that_cannot_be_used(value: object) -> None:
    assert stored_threshold({"free_energy_threshold": value}) is None
    assert stored_threshold({}) is None
    assert stored_threshold({"free_energy_threshold": -3}) == -3.0
