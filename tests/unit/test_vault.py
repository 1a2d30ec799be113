"""Samples: sealed, split for good, bounded, and gone without a trace once their class is erased."""

import io
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import clue
from clue.errors import DataError
from clue_agent import images as images_module
from clue_agent.capture import Capture
from clue_agent.errors import AgentError, SampleRefusedError, SealError, VaultError
from clue_agent.images import check_image
from clue_agent.retention import PARTS, Shelf, VaultLimits, room, surplus
from clue_agent.sealed import KeyRing
from clue_agent.sealed_images import SealedImages
from clue_agent.store import ModelStore
from clue_agent.vault import Erased, Item, Outcome, Swept, Vault

BIRD, ODD = "bird", "Zoë's cat/../\x00"


def picture(seed: int, kind: str = "PNG", size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has written outlives it, synced or not; only a power cut would tell."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys")


@pytest.fixture
def vault(tmp_path: Path, ring: KeyRing) -> Vault:
    return Vault(tmp_path / "vault", ring, VaultLimits(max_per_class=200))


@pytest.fixture
def small(tmp_path: Path, ring: KeyRing) -> Vault:
    """Room for 16 samples of a class to forget with, and for 4 to measure with."""
    return Vault(tmp_path / "small", ring, VaultLimits(max_per_class=20))


def all_items(vault: Vault, name: str) -> list[Item]:
    return [item for part in PARTS for item in vault.items(name, part)]


def files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file())


def assert_whole(vault: Vault) -> None:
    """Every sample can be read, every key opens something, and nothing is half-written."""
    items = [item for name in vault.classes() for item in all_items(vault, name)]
    for item in items:
        check_image(vault.read(item))
    on_disk = {path.stem for path in files(vault.root) if path.suffix == ".sealed"}
    assert on_disk == {item.id for item in items}
    keys = vault.ring.names()
    assert {key for key in keys if key.startswith("sample-")} == {f"sample-{item.id}" for item in items}
    folders = {path.name for path in vault.root.iterdir() if path.is_dir()}
    assert {key for key in keys if key.startswith("class-")} <= {f"class-{folder}" for folder in folders}
    assert not [path for path in files(vault.root) if path.name.startswith(".")]


# Adding and reading


@pytest.mark.parametrize("name", [BIRD, ODD, "..", "x" * 500, "\udc80", " ", "鳥"])
def test_what_was_added_is_read_back_whatever_the_class_is_called(vault: Vault, name: str) -> None:
    offered = {picture(seed) for seed in range(5)} | {picture(9, "JPEG")}
    assert {vault.add(name, data) for data in offered} == {Outcome.ADDED}
    items = all_items(vault, name)
    assert {vault.read(item) for item in items} == offered
    assert vault.classes() == [name]
    assert sum(vault.count(name, part) for part in PARTS) == 6
    again = Vault(vault.root, vault.ring)
    assert all_items(again, name) == items
    assert all(path.resolve().is_relative_to(vault.root) for path in files(vault.root))
    assert vault.erase(name).items == 6


def test_a_duplicate_falls_out(vault: Vault) -> None:
    assert vault.add(BIRD, picture(1)) is Outcome.ADDED
    assert vault.add(BIRD, picture(1)) is Outcome.DUPLICATE
    assert Vault(vault.root, vault.ring).add(BIRD, picture(1)) is Outcome.DUPLICATE
    assert len(all_items(vault, BIRD)) == 1
    # Of another class it is another sample, under another key.
    assert vault.add("cat", picture(1)) is Outcome.ADDED
    assert all_items(vault, BIRD)[0].id != all_items(vault, "cat")[0].id


def test_nothing_of_an_image_is_in_the_clear_and_only_the_owner_reads(vault: Vault, tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    vault.add(BIRD, buffer.getvalue())
    for path in files(tmp_path):
        assert b"PNG" not in path.read_bytes()
        assert bytes(64) not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"no image at all", "not a PNG or JPEG"),
        (picture(1, "BMP"), "not a PNG or JPEG"),
        (picture(1)[:-60], "damaged"),
        (picture(1, "JPEG", 64)[:-400], "damaged"),
        (picture(1, size=7), "7 x 7"),
    ],
)
def test_what_is_no_usable_image_is_refused_in_one_line(vault: Vault, data: bytes, what: str) -> None:
    with pytest.raises(SampleRefusedError, match=what) as caught:
        vault.add(BIRD, data)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    assert not list(vault.ring.root.glob("*"))
    assert vault.classes() == []


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = picture(1)
    wide = bomb.replace((8).to_bytes(4, "big") * 2, (60_000).to_bytes(4, "big") * 2, 1)
    # The check sum of the header no longer fits, which Pillow sees first; so patch the limit as well.
    with pytest.raises(SampleRefusedError):
        check_image(wide)
    monkeypatch.setattr(images_module, "MAX_PIXELS", 63)
    with pytest.raises(SampleRefusedError, match="8 x 8 pixels"):
        check_image(bomb)
    monkeypatch.setattr(images_module, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(SampleRefusedError, match="at most 10"):
        check_image(bomb)


@given(st.sampled_from(["PNG", "JPEG"]), st.integers(0, 400), st.binary(min_size=1, max_size=40))
def test_a_damaged_image_raises_nothing_but_a_refusal(kind: str, at: int, junk: bytes) -> None:
    data = picture(3, kind, 16)
    at %= len(data)
    try:
        check_image(data[:at] + junk + data[at + len(junk) :])
    except SampleRefusedError as error:
        assert "\n" not in str(error)


# The split


def test_the_split_depends_on_the_content_alone(tmp_path: Path, ring: KeyRing) -> None:
    vault = Vault(tmp_path / "vault", ring, VaultLimits(max_per_class=100, holdout_share=0.3))
    pool = [picture(seed) for seed in range(60)]
    for data in pool:
        vault.add(BIRD, data)
    before = {vault.read(item): item.part for item in all_items(vault, BIRD)}
    assert 3 < sum(part == "holdout" for part in before.values()) < 36  # one in a million
    vault.erase(BIRD)
    # In another class, in another order, by another process: what was held out still is.
    again = Vault(tmp_path / "vault", ring)
    for data in reversed(pool):
        again.add("cat", data)
    assert {again.read(item): item.part for item in all_items(again, "cat")} == before


def test_the_share_cannot_change_under_samples(vault: Vault) -> None:
    other = VaultLimits(holdout_share=0.4)
    vault.add(BIRD, picture(1))
    with pytest.raises(VaultError, match=r"split with holdout_share = 0\.2"):
        Vault(vault.root, vault.ring, other)
    assert Vault(vault.root, vault.ring).limits.holdout_share == 0.2
    vault.erase(BIRD)
    Vault(vault.root, vault.ring, other)
    assert Vault(vault.root, vault.ring).limits.holdout_share == 0.4


def test_an_app_takes_the_limits_of_the_daemon(vault: Vault) -> None:
    Vault(vault.root, vault.ring, VaultLimits(max_per_class=7777)).sweep()
    assert Vault(vault.root, vault.ring).limits.max_per_class == 7777


# Bounds


@given(st.lists(st.integers(0, 40), max_size=60, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_what_stays_is_the_lowest_ids_whatever_the_order(seeds: list[int], random: object) -> None:
    limits = VaultLimits(max_per_class=10, holdout_share=0.3)
    ids = [f"{seed * 7919 % 41:03d}" for seed in seeds]

    def keep(order: list[str]) -> list[str]:
        shelf: Shelf = {"forget": {}, "holdout": {}}
        for identity in order:
            shelf["forget"].setdefault(identity, 100)
            for _, part, victim in surplus({BIRD: shelf}, limits):
                del shelf[part][victim]
        return sorted(shelf["forget"])

    shuffled = ids + ids[: len(ids) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert keep(ids) == keep(shuffled) == sorted(ids)[:7]


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(*[st.dictionaries(st.integers(0, 999).map(str), st.integers(1, 300_000), max_size=15)] * 2),
    )
)
def test_the_plan_meets_both_limits_and_takes_no_more_than_needed(
    raw: dict[str, tuple[dict[str, int], dict[str, int]]],
) -> None:
    limits = VaultLimits(max_per_class=12, max_bytes=1 << 20, holdout_share=0.25)
    shelves: dict[str, Shelf] = {name: {"forget": f, "holdout": h} for name, (f, h) in raw.items()}

    def taken() -> int:
        return sum(room(size) for shelf in shelves.values() for ids in shelf.values() for size in ids.values())

    plan = surplus(shelves, limits)
    assert len(set(plan)) == len(plan)
    last = 0
    for name, part, identity in plan:
        assert identity == max(shelves[name][part])
        last = room(shelves[name][part].pop(identity))
    assert taken() <= limits.max_bytes
    for shelf in shelves.values():
        assert len(shelf["forget"]) <= 9
        assert len(shelf["holdout"]) <= 3
    full = any(len(shelf["forget"]) == 9 or len(shelf["holdout"]) == 3 for shelf in shelves.values())
    assert not plan or full or taken() + last > limits.max_bytes


def test_a_full_class_keeps_its_quota_and_evicting_destroys_the_key(small: Vault) -> None:
    outcomes = [small.add(BIRD, picture(seed)) for seed in range(80)]
    assert (small.count(BIRD, "forget"), small.count(BIRD, "holdout")) == (16, 4)
    assert outcomes.count(Outcome.NOT_KEPT) > 0
    assert outcomes.count(Outcome.ADDED) > 20  # some made room for others
    assert_whole(small)
    # The same images again change nothing: kept ones are duplicates, the rest lost the draw for good.
    before = all_items(small, BIRD)
    assert {small.add(BIRD, picture(seed)) for seed in range(80)} == {Outcome.DUPLICATE, Outcome.NOT_KEPT}
    assert all_items(small, BIRD) == before


def test_when_the_room_is_used_up_the_largest_class_gives_way(tmp_path: Path, ring: KeyRing) -> None:
    vault = Vault(tmp_path / "vault", ring, VaultLimits(max_bytes=1 << 20))
    for seed in range(8):
        vault.add("large", picture(seed, size=200))  # about 120 kB each
    for seed in range(3):
        assert vault.add("small", picture(seed)) is Outcome.ADDED
    assert vault.add("small", picture(50, size=200)) is Outcome.ADDED
    assert len(all_items(vault, "small")) == 4
    assert len(all_items(vault, "large")) < 8
    assert sum(room(path.stat().st_size) for path in files(vault.root) if path.suffix == ".sealed") <= 1 << 20
    assert_whole(vault)


def test_lowered_limits_apply_at_the_next_start(small: Vault) -> None:
    for seed in range(100):
        small.add(BIRD, picture(seed))
    smaller = Vault(small.root, small.ring, VaultLimits(max_per_class=10))
    kept = {part: smaller.items(BIRD, part) for part in PARTS}
    assert smaller.sweep().files == 10
    assert smaller.items(BIRD, "forget") == kept["forget"][:8]
    assert smaller.items(BIRD, "holdout") == kept["holdout"][:2]
    assert_whole(smaller)


def test_a_job_loses_no_sample_while_it_reads(small: Vault) -> None:
    for seed in range(100):
        small.add(BIRD, picture(seed))
    items = all_items(small, BIRD)
    app = Vault(small.root, small.ring)
    with small.hold():
        outcomes = {app.add(BIRD, picture(seed)) for seed in range(100, 400)}
        assert outcomes == {Outcome.BUSY, Outcome.NOT_KEPT}
        assert all_items(small, BIRD) == items
        assert app.add("cat", picture(1)) is Outcome.ADDED
    assert Outcome.ADDED in {app.add(BIRD, picture(seed)) for seed in range(100, 400)}


# Erasing


def test_erasing_leaves_no_plaintext_and_no_key(vault: Vault, tmp_path: Path) -> None:
    for seed in range(12):
        vault.add(BIRD, picture(seed))
        vault.add("cat", picture(seed))
    birds, cats = all_items(vault, BIRD), all_items(vault, "cat")
    keys = [vault.ring.get(f"sample-{item.id}") for item in birds]
    size = sum(path.stat().st_size for path in files(vault.root) if path.stem in {item.id for item in birds})

    assert vault.erase(BIRD) == Erased(items=len(birds), bytes=size, keys_destroyed=len(birds))

    everything = b"".join(path.read_bytes() + path.name.encode() for path in files(tmp_path))
    for seed in range(12):
        assert picture(seed)[40:80] not in everything
    for item, key in zip(birds, keys, strict=True):
        assert key not in everything
        assert item.id.encode() not in everything
    assert BIRD.encode() not in everything
    with pytest.raises(SealError, match="erased"):
        vault.read(birds[0])
    assert vault.classes() == ["cat"]
    assert all_items(vault, "cat") == cats
    assert_whole(vault)
    assert vault.erase(BIRD) == Erased()
    # Whatever lingers on the card, the ids of the same images are others now.
    for seed in range(12):
        vault.add(BIRD, picture(seed))
    assert not {item.id for item in birds} & {item.id for item in all_items(vault, BIRD)}


def test_erasing_takes_the_key_that_a_killed_app_left(vault: Vault) -> None:
    vault.add(BIRD, picture(1))
    # Killed between making the key and sealing the image, or between evicting a file and its key.
    vault.ring.create("sample-" + "0" * 40)
    vault.ring.create("model-a-1")
    vault.erase(BIRD)
    assert vault.ring.names() == ["model-a-1"]


def test_the_erased_cannot_be_opened_with_a_copy_of_the_files(vault: Vault, tmp_path: Path) -> None:
    vault.add(BIRD, picture(1))
    item = all_items(vault, BIRD)[0]
    path = next(path for path in files(vault.root) if path.suffix == ".sealed")
    lingering = path.read_bytes()
    vault.erase(BIRD)
    path.parent.mkdir(parents=True)
    path.write_bytes(lingering)
    with pytest.raises(SealError, match="no key"):
        vault.read(item)


def test_one_key_makes_the_whole_class_unreadable(vault: Vault) -> None:
    for name in (BIRD, "cat"):
        for seed in range(5):
            vault.add(name, picture(seed))
    birds = all_items(vault, BIRD)
    folder = next(path for path in files(vault.root) if path.stem == birds[0].id).parent.parent.name
    vault.ring.destroy(f"class-{folder}")
    for item in birds:
        with pytest.raises(SealError):
            vault.read(item)
    with pytest.raises(VaultError, match="no longer be read"):
        vault.add(BIRD, picture(9))
    # So would a crash leave it on a full card, where the marker could not be written.
    assert vault.sweep().erased[BIRD].keys_destroyed == 5
    assert_whole(vault)
    assert vault.classes() == ["cat"]


# Crashes: the process is killed before every single file operation in turn


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of vaults are made and removed."""
    memory = "/dev/shm"  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a process of its own that is killed before its ``step``-th file operation; False if it ended."""
    pid = os.fork()
    if pid == 0:
        left = step

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in {"open", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.listdir"}:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def crashes(make: Callable[[Path], Vault], root: Path, work: Callable[[Vault], object]) -> Iterator[Vault]:
    """The vault as ``work`` leaves it when it is killed at its first, second, ... file operation."""
    made = make(root / "made")
    for step in range(500):
        home = root / str(step)
        shutil.copytree(root / "made", home)
        vault = Vault(home / made.root.name, KeyRing(home / made.ring.root.name))
        was_killed = killed_at(step, lambda vault=vault: work(vault))  # type: ignore[misc]
        yield Vault(vault.root, vault.ring)
        if not was_killed:
            assert step > 10
            return
        shutil.rmtree(home)
    raise AssertionError("it never came to its end")


def filled(root: Path) -> Vault:
    vault = Vault(root / "vault", KeyRing(root / "keys"), VaultLimits(max_per_class=30))
    for name in (BIRD, "cat"):
        for seed in range(3):
            vault.add(name, picture(seed))
    return vault


def test_a_vault_whose_making_was_killed_is_made(scratch: Path) -> None:
    def begin(vault: Vault) -> None:
        Vault(vault.root.parent / "other", vault.ring).add(BIRD, picture(1))

    for vault in crashes(lambda root: Vault(root / "v", KeyRing(root / "keys")), scratch, begin):
        other = Vault(vault.root.parent / "other", vault.ring)
        other.sweep()
        assert other.add(BIRD, picture(1)) in (Outcome.ADDED, Outcome.DUPLICATE)
        assert_whole(other)


def test_adding_that_is_killed_leaves_nothing_half_done(scratch: Path) -> None:
    for vault in crashes(filled, scratch, lambda vault: vault.add("dog", picture(7))):
        held = len(all_items(vault, "dog"))
        swept = vault.sweep()
        assert not swept.erased.get("dog", Erased()).items
        assert_whole(vault)
        assert len(all_items(vault, "dog")) == held
        assert vault.add("dog", picture(7)) is (Outcome.DUPLICATE if held else Outcome.ADDED)
        assert vault.sweep() == Swept()


def test_evicting_that_is_killed_leaves_nothing_half_done(scratch: Path) -> None:
    def full(root: Path) -> Vault:
        vault = Vault(root / "vault", KeyRing(root / "keys"), VaultLimits(max_per_class=10, holdout_share=0))
        for seed in range(10):
            vault.add(BIRD, picture(seed))
        return vault

    def displace(vault: Vault) -> None:
        seed = 10
        while vault.add(BIRD, picture(seed)) is not Outcome.ADDED:
            seed += 1

    steps = 0
    for vault in crashes(full, scratch, displace):
        vault.sweep()
        assert vault.count(BIRD, "forget") == 10
        assert_whole(vault)
        steps += 1
    assert steps > 10


@pytest.mark.parametrize("sweep_first", [True, False])
def test_erasing_that_is_killed_can_be_completed(scratch: Path, sweep_first: bool) -> None:
    for vault in crashes(filled, scratch, lambda vault: vault.erase(BIRD)):
        if (begun := vault.count(BIRD, "forget") + vault.count(BIRD, "holdout") < 3) and any(
            path.name == "erasing" for path in files(vault.root)
        ):
            with pytest.raises(VaultError, match="being erased"):
                vault.add(BIRD, picture(1))
        erased = vault.sweep().erased.get(BIRD) if sweep_first else None
        erased = erased or vault.erase(BIRD)
        # The numbers of the receipt are those of the whole, not of the rest.
        assert (erased.items, erased.keys_destroyed) == (3, 3) or (begun and erased == Erased())
        assert vault.erase(BIRD) == Erased()
        assert_whole(vault)
        assert len(all_items(vault, "cat")) == 3
        assert vault.classes() == ["cat"]


def test_sweeping_that_is_killed_can_be_repeated(scratch: Path) -> None:
    def damaged(root: Path) -> Vault:
        vault = filled(root)
        item = all_items(vault, "cat")[0]
        vault.ring.destroy(f"sample-{item.id}")
        vault.ring.create("sample-orphan")
        vault.ring.create("model-a-1")
        (next(path for path in files(vault.root) if path.suffix == ".sealed").parent / ".x.sealed.tmp").touch()
        next(path for path in files(vault.root) if path.name == "class.json").with_name("erasing").write_text("{")
        return vault

    for vault in crashes(damaged, scratch, lambda vault: vault.sweep()):
        vault.sweep()
        assert_whole(vault)
        assert "model-a-1" in vault.ring.names()
        assert len(vault.classes()) == 1


def test_a_key_cut_short_is_swept_with_its_file(vault: Vault) -> None:
    for seed in range(3):
        vault.add(BIRD, picture(seed))
    item = all_items(vault, BIRD)[0]
    (vault.ring.root / f"sample-{item.id}").write_bytes(b"")
    assert vault.sweep().files == 1
    assert len(all_items(vault, BIRD)) == 2
    assert_whole(vault)


def test_a_full_card_is_one_clear_line_and_costs_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    vault.add(BIRD, picture(1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clue_agent.vault.seal", full)
        with pytest.raises(VaultError, match="No space left on device"):
            vault.add(BIRD, picture(2))
        # Erasing has to work then more than ever.
        patch.setattr("clue_agent.vault.write_atomic", full)
        assert_whole(vault)
        assert vault.erase(BIRD).items == 1
    assert vault.add(BIRD, picture(2)) is Outcome.ADDED
    assert_whole(vault)


def test_a_lost_secret_is_said(vault: Vault) -> None:
    vault.add(BIRD, picture(1))
    (vault.root / "secret").unlink()
    with pytest.raises(VaultError, match="secret is missing or damaged"):
        Vault(vault.root, vault.ring)


# Several processes


def test_processes_add_and_erase_at_once(tmp_path: Path) -> None:
    limits = VaultLimits(max_per_class=10)
    root, ring = tmp_path / "vault", KeyRing(tmp_path / "keys")
    children = []
    for worker in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                vault = Vault(root, ring, limits)
                for seed in range(25):
                    vault.add(BIRD, picture(1000 * (worker % 2) + seed))
                    if worker == 3 and seed % 10 == 9:
                        vault.erase(BIRD)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    vault = Vault(root, ring)
    assert_whole(vault)
    assert vault.count(BIRD, "forget") <= 8
    assert vault.sweep() == Swept()


# Capture


def test_an_app_hands_over_pictures_of_three_kinds(tmp_path: Path) -> None:
    capture = Capture(tmp_path, forgotten=("cat",))
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    assert capture.add(BIRD, pixels) is Outcome.ADDED
    assert capture.add(BIRD, Image.fromarray(pixels)) is Outcome.DUPLICATE
    assert capture.add(BIRD, picture(1, "JPEG")) is Outcome.ADDED
    assert capture.add(BIRD, Image.new("CMYK", (9, 9))) is Outcome.ADDED
    vault = Vault(tmp_path / "vault", KeyRing(tmp_path / "keys"))
    stored = [vault.read(item) for item in all_items(vault, BIRD)]
    assert any(np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels) for data in stored)
    for wrong in (pixels.astype(float), pixels[:, :, 0], pixels[:0], "a path", None, Image.new("RGB", (0, 9))):
        with pytest.raises(SampleRefusedError):
            capture.add(BIRD, wrong)  # type: ignore[arg-type]
    with pytest.raises(SampleRefusedError, match="'cat' is forgotten"):
        capture.add("cat", pixels)
    assert vault.classes() == [BIRD]


def test_what_is_forgotten_is_asked_under_the_lock(vault: Vault) -> None:
    forgotten: list[str] = []

    def asked() -> list[str]:
        # The class is forgotten and erased after the app has begun to add.
        forgotten.append(BIRD)
        return forgotten

    with pytest.raises(SampleRefusedError, match="forgotten"):
        vault.add(BIRD, picture(1), refused=asked)
    assert vault.classes() == []


def test_an_app_stores_nothing_of_what_the_model_forgot(tmp_path: Path, bundle_dir: Path) -> None:
    with pytest.raises(AgentError, match="no model"):
        Capture(tmp_path).add("red", picture(1))
    bundle = clue.load_bundle(bundle_dir)
    clue.save_bundle(tmp_path / "new", bundle.model, bundle.spec.with_forgotten("red"))
    ModelStore(tmp_path / "model", KeyRing(tmp_path / "keys")).install(tmp_path / "new")
    capture = Capture(tmp_path)
    with pytest.raises(SampleRefusedError, match="'red' is forgotten"):
        capture.add("red", picture(1))
    assert capture.add("blue", picture(1)) is Outcome.ADDED


# As a data set


def test_sealed_images_are_those_of_an_image_folder(vault: Vault, images_root: Path, spec: clue.ModelSpec) -> None:
    for path in sorted(images_root.glob("train/*/*.png"))[:45]:
        vault.add(path.parent.name, path.read_bytes())
    vault.add("no class of the model", picture(1))
    plain = clue.data.image_folder(images_root / "train", spec)
    known = {path.read_bytes(): plain[index] for index, path in enumerate(plain.paths)}
    parts = [SealedImages(vault, spec, vault.classes(), part) for part in PARTS]
    assert len(parts[0]) + len(parts[1]) == 45
    for data in parts:
        assert len(data) == len(data.labels) == len(data.items)
        for index, item in enumerate(data.items):
            image, label = known[vault.read(item)]
            torch.testing.assert_close(data[index][0], image)
            assert data[index][1] == data.labels[index] == label
    assert not {item.id for item in parts[0].items} & {item.id for item in parts[1].items}
    fewer = parts[0].without([2])
    assert 2 in parts[0].labels
    assert fewer.labels == [label for label in parts[0].labels if label != 2]


def test_a_damaged_or_erased_sample_is_named(vault: Vault, spec: clue.ModelSpec) -> None:
    for seed in range(12):
        vault.add("red", picture(seed))
    data = SealedImages(vault, spec, ["red"], "forget")
    path = next(path for path in files(vault.root) if path.stem == data.items[0].id)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=data.items[0].id):
        data[0]
    vault.erase("red")
    with pytest.raises(DataError, match="erased"):
        data[1]
