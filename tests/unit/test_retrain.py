"""The oracle as a method: it needs retained data, says so, and is nothing that a device can do."""

from dataclasses import asdict

import pytest
import torch

import clue
from clue.data.decoded import decode, open_source
from clue.errors import ForgetInputError, HyperparameterError, UnknownMethodError
from clue.methods import available_methods, get_method
from clue.train import RECIPES, train

SETTINGS = {"recipe": "digits", "epochs": 1, "classes": "red,green,blue,stripes"}


def retrain(bundle, reds, images_root, **settings):
    given = {"data": str(images_root), **SETTINGS} | settings
    return clue.forget(bundle.model, reds, 0, "retrain", seed=3, hyperparameters=given)


def test_it_is_registered_but_not_offered():
    assert "retrain" not in available_methods()
    assert "retrain" in available_methods(oracles=True)
    assert [name for name in available_methods(oracles=True) if get_method(name).oracle] == ["retrain"]


def test_it_is_training_without_the_class(bundle, reds, images_root, spec, train_cache, tmp_path):
    result = retrain(bundle, reds, images_root)
    recipe = RECIPES["digits"].__class__(**{**RECIPES["digits"].__dict__, "epochs": 1})
    expected = train(spec, train_cache, recipe=recipe, exclude=0, seed=3).model.state_dict()
    found = result.model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert result.report.samples == 60
    assert result.report.epochs == 1
    assert result.report.seconds > 0
    # Decoded images and the plain folder inside give the same model.
    decoded = decode(open_source(images_root), spec.input_size, tmp_path)
    for data in (decoded, images_root / "train"):
        again = retrain(bundle, reds, data).model.state_dict()
        assert all(torch.equal(again[name], found[name]) for name in found)


def test_without_data_it_says_what_it_is(bundle, reds):
    with pytest.raises(ForgetInputError, match=r"needs retained data.*yardstick") as caught:
        clue.forget(bundle.model, reds, 0, "retrain")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"recipe": "cake"}, HyperparameterError, "no training recipe"),
        ({"epochs": -1}, HyperparameterError, "epochs must be at least 0"),
        ({"mean": "1,2"}, HyperparameterError, "mean must be three numbers"),
        ({"arguments": "[]"}, HyperparameterError, "arguments must be a JSON object"),
        ({"architecture": "small_vit"}, ForgetInputError, "the model is no small_vit"),
        ({"classes": "red,green"}, clue.ClueError, "blue is not named after a class"),
        ({"data": "gone"}, clue.ClueError, "gone does not exist"),
    ],
)
def test_wrong_settings(settings, error, message, bundle, reds, images_root):
    with pytest.raises(error, match=message):
        retrain(bundle, reds, images_root, **settings)


def test_a_device_refuses_it(bundle_dir, images_root, tmp_path):
    from clue_agent.job import JobSpec
    from clue_agent.sealed import KeyRing
    from clue_agent.store import CANDIDATE, ModelStore
    from clue_agent.vault import Vault
    from clue_agent.worker import Worker

    ring = KeyRing(tmp_path / "keys")
    store = ModelStore(tmp_path / "model", ring)
    store.install(bundle_dir)
    Vault(tmp_path / "vault", ring).add("red", (images_root / "train" / "red" / "0.png").read_bytes())
    spec = JobSpec(
        forget=("red",), synthetic=False, method="retrain", hyperparameters={"data": str(images_root)}, step_scale=1.0,
        seed=0, max_ua=0.1, slot="a", model_digest=store.spec()[1], checkpoint="c",
    )  # fmt: skip
    job = asdict(spec) | {
        "home": str(tmp_path), "allowed_factories": [], "holdout": str(images_root / "test"), "batch_size": 8,
    }  # fmt: skip
    with pytest.raises(UnknownMethodError, match="yardstick only"):
        Worker(job).run()
    assert not store.slot(CANDIDATE).exists()
