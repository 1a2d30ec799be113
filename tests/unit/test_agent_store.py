"""The model store: always one whole model, sealed, and nothing left of the one before."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import clue
from clue.errors import BundleError
from clue.spec import SPEC_FILE, WEIGHTS_FILE
from clue_agent.errors import SealError, StoreError
from clue_agent.sealed import KeyRing, seal, unseal
from clue_agent.store import CANDIDATE, ModelStore


@pytest.fixture
def store(tmp_path: Path, bundle_dir: Path) -> ModelStore:
    found = ModelStore(tmp_path / "model", KeyRing(tmp_path / "keys"))
    found.install(bundle_dir)
    return found


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def build(store: ModelStore, bundle_dir: Path, name: str = "red") -> str:
    """A candidate that differs from the model in use; returns its digest."""
    stored = store.read()
    spec = stored.spec.with_forgotten(name)
    store.write(CANDIDATE, spec.to_json().encode(), stored.weights, {"free_energy_threshold": -1.0})
    return store.read(CANDIDATE).digest


def test_install_seals_two_copies(store: ModelStore, bundle_dir: Path, spec: clue.ModelSpec) -> None:
    weights = (bundle_dir / WEIGHTS_FILE).read_bytes()
    assert store.current.readlink() == Path("a")  # relative: the home can be moved
    for slot in "ab":
        assert store.read(slot).weights == weights
        for path in store.slot(slot).iterdir():
            assert weights[100:164] not in path.read_bytes()
    assert len(store.ring.names()) == 2
    assert store.verify() == store.spec()
    assert store.spec()[0].classes == spec.classes
    with pytest.raises(StoreError, match="already holds"):
        store.install(bundle_dir)


def test_install_refuses_a_damaged_bundle(tmp_path: Path, bundle_dir: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle_dir, damaged)
    flip_last_byte(damaged / WEIGHTS_FILE)
    store = ModelStore(tmp_path / "model", KeyRing(tmp_path / "keys"))
    with pytest.raises(BundleError):
        store.install(damaged)
    assert not store.current.exists()
    store.install(bundle_dir)  # and a good one still goes in


def test_a_candidate_takes_over_and_the_old_model_is_gone(store: ModelStore, bundle_dir: Path) -> None:
    old = store.spec()[1]
    before = store.fingerprint()
    new = build(store, bundle_dir)
    assert store.spec()[1] == old  # nothing changes before the switch
    assert store.fingerprint() == before
    assert store.promote(new)
    assert store.fingerprint() != before
    assert store.verify()[1] == new
    assert store.read().calibration == {"free_energy_threshold": -1.0}
    assert store.promote(new)  # again, as after a crash
    # The old one is in the other slot until its key is destroyed.
    assert store.is_whole(store.other_slot(), old)
    old_keys = set(store.ring.names())
    assert store.erase(store.other_slot())
    assert not store.is_whole(store.other_slot(), old)
    store.mirror()
    assert store.read(store.other_slot()).digest == new
    assert len(store.ring.names()) == 2
    assert len(old_keys & set(store.ring.names())) == 1


def test_a_damaged_candidate_is_not_used(store: ModelStore, bundle_dir: Path) -> None:
    old = store.spec()[1]
    new = build(store, bundle_dir)
    flip_last_byte(store.slot(CANDIDATE) / "weights.sealed")
    assert not store.promote(new)
    assert store.verify()[1] == old


def test_the_slot_in_use_cannot_be_erased(store: ModelStore) -> None:
    with pytest.raises(StoreError, match="in use"):
        store.erase(store.current_slot())
    assert store.verify()


DAMAGE = {
    "weights": lambda slot: flip_last_byte(slot / "weights.sealed"),
    "weights cut": lambda slot: (slot / "weights.sealed").write_bytes((slot / "weights.sealed").read_bytes()[:-20]),
    "weights empty": lambda slot: (slot / "weights.sealed").write_bytes(b""),
    "spec": lambda slot: (slot / SPEC_FILE).write_text("{}"),
    "spec gone": lambda slot: (slot / SPEC_FILE).unlink(),
    "key id": lambda slot: (slot / "key-id").write_text("model-a-0000000000000000"),
    "key id gone": lambda slot: (slot / "key-id").unlink(),
    "slot gone": lambda slot: shutil.rmtree(slot),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_slot_falls_back_to_the_good_one_and_says_so(store: ModelStore, name: str) -> None:
    digest = store.spec()[1]
    assert store.repair() == ""
    DAMAGE[name](store.slot("a"))
    with pytest.raises(StoreError):
        store.verify()
    said = store.repair()
    assert "went back to slot b" in said
    assert store.current_slot() == "b"
    assert store.verify()[1] == digest
    store.mirror()
    assert store.is_whole("a", digest)


def test_both_slots_damaged_is_an_error_with_a_way_out(store: ModelStore) -> None:
    for slot in "ab":
        flip_last_byte(store.slot(slot) / "weights.sealed")
    with pytest.raises(StoreError, match="update-model"):
        store.repair()


def test_a_lost_link_is_made_again(store: ModelStore) -> None:
    digest = store.spec()[1]
    store.current.unlink()
    with pytest.raises(StoreError, match="clue-agent init"):
        store.spec()
    assert "went back" in store.repair()
    assert store.verify()[1] == digest
    store.current.unlink()
    store.current.symlink_to("/etc")
    with pytest.raises(StoreError, match="not a slot"):
        store.verify()


class StoreMachine(RuleBasedStateMachine):
    """Whatever is built, damaged or left half-done beside it, the model in use is whole and the one expected."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        self.store = ModelStore(root / "model", KeyRing(root / "keys"))
        self.store.install(self.template)
        self.expected = self.store.spec()[1]
        self.candidate = ""

    @rule(name=st.sampled_from(["red", "green", "blue"]))
    def build(self, name: str) -> None:
        self.candidate = build(self.store, self.template, name)

    @rule()
    def half_build(self) -> None:
        self.store.erase(CANDIDATE)
        self.store.slot(CANDIDATE).mkdir()
        (self.store.slot(CANDIDATE) / "weights.sealed").write_bytes(b"half")

    @rule()
    def damage_the_other(self) -> None:
        folder = self.store.slot(self.store.other_slot())
        if folder.exists():
            (folder / "weights.sealed").write_bytes(b"rot")

    @rule()
    def promote(self) -> None:
        if self.candidate and self.store.promote(self.candidate):
            self.expected = self.candidate

    @rule()
    def mirror(self) -> None:
        self.store.mirror()

    @rule()
    def repair(self) -> None:
        assert self.store.repair() == ""

    @invariant()
    def the_model_in_use_is_whole(self) -> None:
        assert self.store.verify()[1] == self.expected
        assert self.store.other_slot() != self.store.current_slot()

    @invariant()
    def every_key_belongs_to_a_slot(self) -> None:
        assert len(self.store.ring.names()) <= 3

    def teardown(self) -> None:
        self.folder.cleanup()


def test_store_machine(bundle_dir: Path) -> None:
    machine = type("Machine", (StoreMachine,), {"template": bundle_dir})
    run_state_machine_as_test(machine, settings=settings(max_examples=8, stateful_step_count=10, deadline=None))


# Sealed files


@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3 << 18])
def test_what_is_sealed_comes_back_and_every_damage_is_seen(tmp_path: Path, size: int) -> None:
    ring = KeyRing(tmp_path / "keys")
    key = ring.create("one")
    data = bytes(i % 251 for i in range(size))
    path = tmp_path / "x.sealed"
    seal(data, path, key)
    assert unseal(path, ring.get("one")) == data
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-17], whole + b"\0", whole[: len(whole) // 2], b"", b"x" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(SealError):
            unseal(path, key)
    for spot in {0, 14, 38, len(whole) - 1, len(whole) // 2}:
        path.write_bytes(whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :])
        with pytest.raises(SealError):
            unseal(path, key)


def test_a_destroyed_key_is_gone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    key = ring.create("one")
    with pytest.raises(FileExistsError):
        ring.create("one")
    assert ring.names() == ["one"]
    assert ring.destroy("one")
    assert not ring.destroy("one")
    assert ring.names() == []
    with pytest.raises(SealError, match="erased"):
        ring.get("one")
    assert all(key not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for name in ("../x", "", "a/b", ".x"):
        with pytest.raises(SealError, match="name of a key"):
            ring.get(name)
