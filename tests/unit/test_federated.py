"""Federated updates in the SDK: made, written, read from anyone, applied."""

import copy
import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

import clue
from clue.architectures import build_model
from clue.bundle import ModelBundle
from clue.errors import UnknownClassError, UpdateError
from clue.federated import Change, Update, apply_update, make_update, update_from_bytes, update_to_bytes

BASE = "ab" * 32


def change(shape: tuple[int, ...], indices: list[int], values: list[float]) -> Change:
    return Change(shape, np.array(indices, np.int32), np.array(values, np.float32))


def small_update() -> Update:
    dense = Change((4, 8), np.arange(32, dtype=np.int32), np.linspace(-1, 1, 32, dtype=np.float32))
    sparse = change((1000, 10), [3, 77, 9999], [0.5, -2.0, 1.0])
    return Update(BASE, "bird", 50, {"head.weight": dense, "body.weight": sparse})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    spec = clue.ModelSpec("resnet20", ("cat", "bird", "ship"))
    clue.save_bundle(folder, build_model(spec), spec)
    return clue.load_bundle(folder)


def forgotten(bundle: ModelBundle) -> torch.nn.Module:
    after = copy.deepcopy(bundle.model)
    with torch.no_grad():
        after.linear.weight[1] -= 0.25  # type: ignore[operator, index, union-attr]
        after.layer3[2].conv2.weight += 0.01 * torch.randn(64, 64, 3, 3)  # type: ignore[index, operator, union-attr]
    return after


def test_only_what_changed_is_in_it(bundle: ModelBundle) -> None:
    update = make_update(bundle, forgotten(bundle), "bird", samples=7)
    assert set(update.changes) == {"linear.weight", "layer3.2.conv2.weight"}
    assert update.changes["linear.weight"].indices.tolist() == list(range(64, 128))
    assert (update.base, update.forget_class, update.samples) == (bundle.digest, "bird", 7)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_a_patched_model_is_the_one_that_forgot(bundle: ModelBundle, precision: Any, tolerance: float) -> None:
    after = forgotten(bundle)
    data = update_to_bytes(make_update(bundle, after, "bird", samples=7), precision)
    before = {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()}
    patched = apply_update(bundle, update_from_bytes(data))
    for name, tensor in after.state_dict().items():
        torch.testing.assert_close(patched.model.state_dict()[name], tensor, rtol=0, atol=tolerance)
        assert torch.equal(bundle.model.state_dict()[name], before[name]), "the bundle given was changed"
    assert patched.spec.forgotten == ("bird",)


def test_the_patched_bundle_has_the_digest_it_is_saved_with(bundle: ModelBundle, tmp_path: Path) -> None:
    patched = apply_update(bundle, make_update(bundle, forgotten(bundle), "bird", samples=7))
    clue.save_bundle(tmp_path, patched.model, patched.spec)
    loaded = clue.load_bundle(tmp_path)
    assert (loaded.digest, loaded.spec) == (patched.digest, patched.spec)
    assert patched.digest != bundle.digest


def test_making_refuses_what_must_not_leave(bundle: ModelBundle) -> None:
    with pytest.raises(UpdateError, match="nothing changed"):
        make_update(bundle, copy.deepcopy(bundle.model), "bird", samples=1)
    with pytest.raises(UnknownClassError, match="did you mean 'bird'"):
        make_update(bundle, forgotten(bundle), "birds", samples=1)
    with pytest.raises(UpdateError, match="samples"):
        make_update(bundle, forgotten(bundle), "bird", samples=0)
    statistics = forgotten(bundle)
    statistics.bn1.running_mean += 1  # type: ignore[union-attr, operator]
    with pytest.raises(UpdateError, match=r"bn1.running_mean.*not shared"):
        make_update(bundle, statistics, "bird", samples=1)
    broken = forgotten(bundle)
    with torch.no_grad():
        broken.linear.bias[0] = torch.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(UpdateError, match="not finite"):
        make_update(bundle, broken, "bird", samples=1)


def test_applying_refuses_what_does_not_fit(bundle: ModelBundle) -> None:
    def of(changes: dict[str, Change], **fields: Any) -> Update:
        return Update(**{"base": bundle.digest, "forget_class": "bird", "samples": 1, "changes": changes} | fields)

    good = {"linear.bias": change((3,), [1], [-1.0])}
    assert apply_update(bundle, of(good)).model.linear.bias[1] == bundle.model.linear.bias[1] - 1  # type: ignore[index, operator, union-attr]
    with pytest.raises(UpdateError, match="belongs to the model"):
        apply_update(bundle, of(good, base=BASE))
    with pytest.raises(UnknownClassError):
        apply_update(bundle, of(good, forget_class="dog"))
    with pytest.raises(UpdateError, match="no weight of the model"):
        apply_update(bundle, of(good | {"other.weight": change((3,), [1], [1.0])}))
    with pytest.raises(UpdateError, match="no weight of the model"):
        apply_update(bundle, of({"bn1.running_var": change((16,), [1], [-9.0])}))
    with pytest.raises(UpdateError, match="has the shape"):
        apply_update(bundle, of({"linear.bias": change((4,), [1], [1.0])}))
    largest = float(np.finfo(np.float32).max)
    huge = of({"linear.weight": change((3, 64), [0], [largest])})
    once = apply_update(bundle, huge)
    with pytest.raises(UpdateError, match="not finite"):
        apply_update(once, Update(once.digest, "bird", 1, huge.changes))


def test_tied_weights_are_changed_once(bundle: ModelBundle) -> None:
    model = copy.deepcopy(bundle.model)
    model.layer3[2].conv1.weight = model.layer3[2].conv2.weight  # type: ignore[index, union-attr]
    tied = ModelBundle(model, bundle.spec, bundle.digest)
    after = copy.deepcopy(model)
    with torch.no_grad():
        after.layer3[2].conv1.weight += 1  # type: ignore[index, union-attr, operator]
    patched = apply_update(tied, make_update(tied, after, "bird", samples=1))
    expected, found = after.layer3[2].conv2.weight, patched.model.layer3[2].conv2.weight  # type: ignore[index, union-attr]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_bytes_hold_everything_and_little_more() -> None:
    update = small_update()
    data = update_to_bytes(update, "float32")
    read = update_from_bytes(data)
    assert (read.base, read.forget_class, read.samples, read.contributors) == (BASE, "bird", 50, 1)
    for name, one in update.changes.items():
        assert read.changes[name].shape == one.shape
        np.testing.assert_array_equal(read.changes[name].indices, one.indices)
        np.testing.assert_array_equal(read.changes[name].values, one.values)
    # A bitmap for the dense tensor, positions for the sparse one: neither takes its other form.
    assert set(load(data)) == {"1.bitmap", "1.values", "0.indices", "0.values"}


def test_values_too_large_for_half_precision_stay_whole() -> None:
    update = Update(BASE, "bird", 1, {"w": change((2,), [0, 1], [1e6, 1.0])})
    assert update_from_bytes(update_to_bytes(update)).changes["w"].values.tolist() == [1e6, 1.0]


@pytest.mark.parametrize(
    ("shape", "indices", "values", "problem"),
    [
        ((4,), [1, 1], [1, 1], "come twice"),
        ((4,), [2, 1], [1, 1], "ascending"),
        ((4,), [4], [1], "outside"),
        ((4,), [-1], [1], "outside"),
        ((4,), [], [], "0 positions"),
        ((4,), [1, 2], [1], "2 positions for 1"),
        ((4,), [1], [np.nan], "not finite"),
        ((4,), [1], [np.inf], "not finite"),
        ((0,), [1], [1], "impossible shape"),
        ((1,) * 9, [0], [1], "impossible shape"),
        ((2**16, 2**16), [1], [1], "more than"),
    ],
)
def test_impossible_changes(shape: tuple[int, ...], indices: list[int], values: list[float], problem: str) -> None:
    with pytest.raises(UpdateError, match=problem):
        change(shape, indices, values)


def rewritten(edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """A small update whose description and arrays were edited."""
    data = update_to_bytes(small_update())
    (length,) = struct.unpack_from("<Q", data)
    described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["clue"])
    arrays = {name: array.copy() for name, array in load(data).items()}
    edit(described, arrays)
    return save(arrays, metadata={"clue": json.dumps(described)})


def put(name: str, array: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _described, arrays: arrays.update({name: array})


def say(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda described, _arrays: described.update(fields)


HOSTILE = {
    "format": (say(format="clue-update/9"), "not of the format"),
    "digest": (say(base="ab"), "SHA-256"),
    "digest is a number": (say(base=7), "wrong type"),
    "no class": (say(**{"class": ""}), "class name"),
    "long class": (say(**{"class": "x" * 10_000}), "class name"),
    "samples below one": (say(samples=0), "samples"),
    "samples true": (say(samples=True), "samples"),
    "samples beyond bounds": (say(samples=10**30), "samples"),
    "contributors": (say(contributors=1.5), "contributors"),
    "no tensors": (say(tensors={}), "1 to"),
    "tensors are a list": (say(tensors=[1]), "1 to"),
    "more tensors than arrays": (say(tensors={"a": [1000, 10], "b": [4, 8], "c": [1]}), "lacks '2.indices'"),
    "too many tensors": (say(tensors={f"t{k}": [10] for k in range(10_001)}), "1 to"),
    "fewer tensors than arrays": (say(tensors={"body.weight": [1000, 10]}), "does not describe"),
    "shape is text": (say(tensors={"body.weight": "ab", "head.weight": [4, 8]}), "shape"),
    "huge shape": (say(tensors={"body.weight": [2**40, 2**40], "head.weight": [4, 8]}), "more than"),
    "huge shape of a bitmap": (say(tensors={"body.weight": [1000, 10], "head.weight": [2**40]}), "does not fit"),
    "negative side": (say(tensors={"body.weight": [1000, 10], "head.weight": [-4, -8]}), "impossible shape"),
    "long name": (say(tensors={"b" * 600: [1000, 10], "head.weight": [4, 8]}), "names of tensors"),
    "duplicate positions": (put("0.indices", np.array([3, 3, 9], np.int32)), "come twice"),
    "out of range": (put("0.indices", np.array([3, 4, 10_000], np.int32)), "outside"),
    "wide positions": (put("0.indices", np.array([3, 4, 5], np.int64)), "int32"),
    "fewer positions": (put("0.indices", np.array([3], np.int32)), "1 positions for 3"),
    "not a number": (put("0.values", np.array([1, np.nan, 2], np.float16)), "not finite"),
    "infinity": (put("1.values", np.full(32, np.inf, np.float16)), "not finite"),
    "matrix": (put("0.values", np.ones((3, 1), np.float16)), "one dimension"),
    "double precision": (put("0.values", np.ones(3, np.float64)), "float64"),
    "bits missing": (put("1.bitmap", np.zeros(4, np.uint8)), "does not mark 32"),
    "bitmap too long": (put("1.bitmap", np.full(5, 255, np.uint8)), "does not fit"),
    "bitmap too wide": (put("1.bitmap", np.full(4, 255, np.int16)), "does not fit"),
    "something else": (put("extra", np.zeros(1, np.uint8)), "does not describe"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_give_one_line(case: str) -> None:
    edit, problem = HOSTILE[case]
    with pytest.raises(UpdateError, match=problem) as caught:
        update_from_bytes(rewritten(edit))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_name_that_comes_twice_is_refused() -> None:
    data = update_to_bytes(small_update())
    assert data.count(b'\\"samples\\": 50') == 1
    twice = data.replace(b'\\"samples\\": 50', b'\\"class\\": \\"x\\"')
    with pytest.raises(UpdateError, match="twice"):
        update_from_bytes(twice)


def test_a_bitmap_with_bits_beyond_the_end_is_refused() -> None:
    odd = Update(BASE, "bird", 1, {"w": change((5,), [0, 1, 2], [1, 2, 3])})
    arrays = {name: array.copy() for name, array in load(update_to_bytes(odd)).items()}
    data = update_to_bytes(odd)
    at = data.rindex(arrays["0.bitmap"].tobytes())
    moved = data[:at] + bytes([0b11000001]) + data[at + 1 :]
    with pytest.raises(UpdateError, match="does not mark 3"):
        update_from_bytes(moved)


def test_size_limit() -> None:
    data = update_to_bytes(small_update())
    with pytest.raises(UpdateError, match="more than the 100 that are allowed"):
        update_from_bytes(data, max_bytes=100)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UpdateError):
        update_from_bytes(data)


@given(st.data())
def test_damaged_updates_never_crash(data: st.DataObject) -> None:
    whole = bytearray(update_to_bytes(small_update()))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    whole = whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole
    try:
        read = update_from_bytes(bytes(whole))
    except UpdateError:
        return
    assert all(np.isfinite(one.values).all() for one in read.changes.values())


def test_memory_stays_within_a_multiple_of_the_bytes() -> None:
    half = 500_000
    indices = np.arange(0, 2 * half, 2, dtype=np.int32)
    data = update_to_bytes(Update(BASE, "bird", 1, {"w": Change((2 * half,), indices, np.ones(half, np.float32))}))
    tracemalloc.start()
    update_from_bytes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(data)


def test_reading_and_writing_need_no_torch() -> None:
    code = (
        "import sys, numpy as np\nfrom clue.federated import *\n"
        "u = Update('ab' * 32, 'x', 1, {'w': Change((2,), np.array([0], np.int32), np.array([1], np.float32))})\n"
        "update_from_bytes(update_to_bytes(u))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
