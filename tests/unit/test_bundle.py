import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import clue
from clue.bundle import load_weights, parameters_are_finite
from clue.errors import BundleError

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tied(num_classes: int) -> nn.Module:
    """A factory for the tests below: two layers that share one weight."""
    one, two = nn.Linear(192, 192), nn.Linear(192, 192)
    two.weight = one.weight
    return nn.Sequential(nn.Flatten(), one, two, nn.Linear(192, num_classes))


def test_round_trip(bundle, tmp_path) -> None:
    spec = clue.save_bundle(tmp_path / "a" / "b", bundle.model, bundle.spec.with_forgotten("red"))
    again = clue.load_bundle(tmp_path / "a" / "b")
    assert again.spec == spec
    assert again.spec.forgotten == ("red",)
    assert not again.model.training
    with torch.no_grad():
        assert torch.equal(again.model(IMAGES), bundle.model(IMAGES))
    assert {p.name for p in (tmp_path / "a" / "b").iterdir()} == {"model.json", "model.safetensors"}


def test_saving_twice_gives_the_same_digest(bundle, tmp_path) -> None:
    clue.save_bundle(tmp_path, bundle.model, bundle.spec)
    first = clue.load_bundle(tmp_path).digest
    clue.save_bundle(tmp_path, bundle.model, bundle.spec)
    assert clue.load_bundle(tmp_path).digest == first


def test_a_flipped_bit_in_the_weights_is_found(bundle, tmp_path) -> None:
    clue.save_bundle(tmp_path, bundle.model, bundle.spec)
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="damaged"):
        clue.load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(bundle, tmp_path, name: str) -> None:
    clue.save_bundle(tmp_path, bundle.model, bundle.spec)
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=name):
        clue.load_bundle(tmp_path)


def test_an_interrupted_save_never_loads(bundle, tmp_path, monkeypatch) -> None:
    clue.save_bundle(tmp_path, bundle.model, bundle.spec)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clue.bundle.save_file", full)
    with pytest.raises(BundleError, match="No space left"):
        clue.save_bundle(tmp_path, bundle.model, bundle.spec)
    with pytest.raises(BundleError):
        clue.load_bundle(tmp_path)


def test_a_folder_that_cannot_be_made(bundle, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        clue.save_bundle(tmp_path / "file" / "model", bundle.model, bundle.spec)


def test_weights_that_do_not_fit(bundle, bundle_dir, tmp_path) -> None:
    state = load_file(bundle_dir / "model.safetensors")
    cases = {
        "missing": {k: v for k, v in state.items() if k != "linear.bias"},
        "unexpected": state | {"extra": torch.zeros(1)},
        "holds weights of 3 classes": state | {"linear.weight": torch.zeros(3, 64)},
    }
    for said, changed in cases.items():
        save_file(changed, tmp_path / "w.safetensors")
        with pytest.raises(BundleError, match=said):
            load_weights(bundle.model, tmp_path / "w.safetensors")
    without_counters = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    save_file(without_counters, tmp_path / "w.safetensors")
    load_weights(bundle.model, tmp_path / "w.safetensors")


def test_a_pickle_is_refused(bundle, tmp_path) -> None:
    torch.save(bundle.model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(BundleError, match="cannot read weights"):
        load_weights(bundle.model, tmp_path / "w.pt")


def test_code_named_by_a_bundle_runs_only_if_trusted(bundle, tmp_path) -> None:
    name = f"{__name__}:tied"
    spec = dataclasses.replace(bundle.spec, architecture=name)
    clue.save_bundle(tmp_path, tied(4), spec)
    with pytest.raises(BundleError, match="trust"):
        clue.load_bundle(tmp_path)
    loaded = clue.load_bundle(tmp_path, allowed_factories=[name])
    assert loaded.model(IMAGES).shape == (2, 4)
    assert loaded.model[1].weight is loaded.model[2].weight


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("resnet21", "unknown architecture"),
        ("torchvision:nope", "torchvision has no classifier"),
        ("no.such.module:build", "trust"),
        ("../evil:build", "unknown architecture"),
    ],
)
def test_architectures_that_cannot_be_built(bundle, bundle_dir, tmp_path, architecture, said) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bundle_dir / name).read_bytes())
    body = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(body | {"architecture": architecture}))
    with pytest.raises(BundleError, match=said):
        clue.load_bundle(tmp_path)


def test_wrong_arguments_of_an_architecture(bundle) -> None:
    from clue.architectures import build_model

    with pytest.raises(BundleError, match="cannot build"):
        build_model(dataclasses.replace(bundle.spec, arguments={"depth": 3}))
    with pytest.raises(BundleError, match="cannot import"):
        build_model(dataclasses.replace(bundle.spec, architecture="no.such:f"), allowed_factories=["no.such:f"])


def test_small_vit_is_built(bundle) -> None:
    from clue.architectures import build_model

    spec = dataclasses.replace(bundle.spec, architecture="small_vit", arguments={"image_size": 8, "patch_size": 4})
    assert build_model(spec)(IMAGES).shape == (2, 4)


def test_finiteness_looks_at_buffers_too(bundle) -> None:
    assert parameters_are_finite(bundle.model)
    bundle.model.bn1.running_var[0] = torch.inf
    assert not parameters_are_finite(bundle.model)
