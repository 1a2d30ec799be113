"""Vision transformers: built for their input, imported from torchvision's weights, unlearned like any other model."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset
from unlearning_nets import CLASSES, FORGET, SIZE, forget_set, labelled

import clue
from clue import evaluate
from clue._head import classifier_head, tap_features
from clue.architectures import build_model
from clue.bundle import load_weights
from clue.cli import app
from clue.cli._run import run as run_cli
from clue.errors import BundleError, ForgetInputError, TrainError
from clue.methods import available_methods
from clue.train import RECIPES, ImageCache, train

SPEC = clue.ModelSpec("small_vit", ("a", "b", "c", "d"), (SIZE, SIZE), arguments={"patch_size": 4})
# Enough to see the loop at work, on a net that learns its four classes in a few seconds.
STRONG = {
    "boundary_expanding": {"lr": 3e-2, "epochs": 8},
    "boundary_shrinking": {"lr": 3e-2, "epochs": 10},
    "clue": {
        "lr": 0.1,
        "noise_level": 5.0,
        "noise_cells": 0,
        "kd_weight": 1.0,
        "energy": "logsumexp",
        "energy_weight": 1.0,
        "min_steps": 0,
        "max_steps": 0,
        "clip_norm": 0.0,
    },
    "clue_plus": {"steps": 30, "proxies_per_class": 4, "proxy_steps": 4},
    "delete": {"lr": 3e-2, "epochs": 10},
    "gradient_ascent": {"lr": 0.5, "epochs": 30, "clip_norm": 0.0},
    "influence": {"damping": 1e-2},
    "lipschitz": {"lr": 1.0, "epochs": 20, "momentum": 0.9},
    "random_labels": {"lr": 3e-2, "epochs": 10},
    "random_soft_labels": {"lr": 3e-2, "epochs": 10},
    "salun": {"lr": 3e-2, "epochs": 10},
    "selective_synaptic_dampening": {"alpha": 1.0, "samples": 32},
    "unsir": {"lr": 3e-2, "epochs": 10, "noise_samples": 16, "noise_steps": 5},
}


@cache
def _trained() -> nn.Module:
    images, labels = labelled(60, seed=1).tensors
    recipe = RECIPES["digits_vit"]
    cache_of = ImageCache(images, labels, SPEC)
    short = recipe.__class__(epochs=15, batch_size=8, peak_lr=0.03, weight_decay=recipe.weight_decay)
    return train(SPEC, cache_of, recipe=short).model


def trained() -> nn.Module:
    return copy.deepcopy(_trained())


def accuracies(model: nn.Module) -> tuple[float, float]:
    images, labels = labelled(50, seed=2).tensors
    with torch.no_grad():
        correct = model(images).argmax(1) == labels
    chosen = labels == FORGET
    return float(correct[chosen].float().mean()), float(correct[~chosen].float().mean())


@pytest.mark.parametrize("method", available_methods())
def test_every_method_forgets_on_a_transformer(method):
    model = trained()
    assert min(accuracies(model)) > 0.9
    result = clue.forget(model, forget_set(), FORGET, method, hyperparameters=STRONG.get(method, {}))
    assert accuracies(result.model)[0] < 0.5
    assert not any(module.training for module in result.model.modules())


def test_the_head_is_the_classifier_and_its_input_is_a_vector():
    model = trained()
    assert classifier_head(model) is model.heads.head
    with tap_features(model) as tap:
        logits = model(torch.zeros(5, 3, SIZE, SIZE))
        assert tap.features.shape == (5, model.hidden_dim)
        assert torch.equal(model.heads.head(tap.features), logits)


def test_a_head_with_two_layers():
    from clue._torchvision import torchvision

    model = torchvision().models.VisionTransformer(8, 4, 1, 2, 16, 16, num_classes=CLASSES, representation_size=12)
    assert classifier_head(model).in_features == 12
    assert classifier_head(model).out_features == CLASSES


def test_metrics_read_a_transformers_features():
    view = evaluate.ModelView(trained(), labelled(20, seed=1), labelled(10, seed=2), FORGET)
    assert view.test.features.shape == (10 * CLASSES, view.model.hidden_dim)
    assert evaluate.LinearProbe(per_class=20).measure(view).value > 0.7
    assert evaluate.Relearning(draws=1, per_class=4).measure(view).value(5) > 0.7
    assert evaluate.ClassAccuracies().measure(view).ta.value > 0.8
    # Eight bits move a transformer's answers by little.
    assert evaluate.QuantisedAccuracy().measure(view).ua.value > 0.8


def test_the_fast_kernels_agree_with_the_slow_ones():
    """Without gradients torchvision's layers take a fused kernel (for an even number of heads); answers must agree."""
    from clue._torchvision import torchvision

    torch.manual_seed(0)
    model = torchvision().models.VisionTransformer(8, 2, 2, 4, 32, 32, num_classes=CLASSES).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(3, 3, SIZE, SIZE)
    slow = model(images)
    with torch.no_grad():
        fast = model(images)
    assert slow.requires_grad
    assert torch.allclose(slow, fast, atol=1e-4)
    # Gradients to the pixels, with every weight frozen, as the synthesis of proxies takes them.
    model.requires_grad_(False)
    images.requires_grad_()
    F.cross_entropy(model(images), torch.zeros(3, dtype=torch.long)).backward()
    assert bool((images.grad.abs().amax((1, 2, 3)) > 0).all())


@pytest.mark.parametrize("size", [16, 24])
def test_a_transformer_is_built_for_its_input_size(size, tmp_path):
    spec = clue.ModelSpec("small_vit", ("a", "b"), (size, size))
    clue.save_bundle(tmp_path, build_model(spec), spec)
    model = clue.load_bundle(tmp_path).model
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 2)


def test_sizes_that_a_transformer_cannot_have():
    with pytest.raises(BundleError, match="square images only, the input size is 16 x 32"):
        build_model(clue.ModelSpec("small_vit", ("a", "b"), (16, 32)))
    with pytest.raises(BundleError, match="patch size"):
        build_model(clue.ModelSpec("torchvision:vit_b_16", ("a", "b"), (25, 25)))
    with pytest.raises(ForgetInputError, match="cannot take images"):
        clue.forget(trained(), TensorDataset(torch.zeros(2, 3, 16, 16)), FORGET, "delete")
    other = clue.ModelSpec("small_vit", ("a", "b"), (SIZE, SIZE), arguments={"image_size": 32})
    with pytest.raises(TrainError, match=r"cannot take images of shape \(1, 3, 8, 8\)"):
        train(other, TensorDataset(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])), recipe=RECIPES["digits_vit"])


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in torchvision's published checkpoints."""
    rename = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    found = {}
    for name, tensor in state.items():
        for new, old in rename.items():
            name = name.replace(new, old)
        found[name] = tensor.contiguous()
    return found


def test_torchvisions_published_names_are_understood(tmp_path):
    model = trained()
    save_file(old_names(model.state_dict()), tmp_path / "w.safetensors")
    other = build_model(SPEC)
    load_weights(other, tmp_path / "w.safetensors")
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_import_weights_and_forget_from_the_shell(tmp_path, capsys):
    weights, names, out = tmp_path / "w.safetensors", tmp_path / "names.txt", tmp_path / "model"
    save_file(old_names(trained().state_dict()), weights)
    names.write_text("a\nb\nc\nd\n")
    start = ["import-weights", str(weights), "--arch", "small_vit", "--input-size", f"{SIZE}x{SIZE}"]
    start += ["--argument", "patch_size=4", "--out", str(out), "--classes"]
    assert run_cli(app, [*start, "a,b,c"]) == 1
    assert "holds weights of 4 classes, but 3 class names are given" in capsys.readouterr().err
    assert run_cli(app, [*start, "@" + str(tmp_path / "none.txt")]) == 2
    assert run_cli(app, [*start, "a,b,c,d", "--argument", "patch_size"]) == 2
    assert run_cli(app, [*start, "a,b,c,d", "--argument", "depth=3"]) == 1
    assert list(tmp_path.glob("model*")) == []
    capsys.readouterr()
    assert run_cli(app, [*start, "@" + str(names)]) == 0
    bundle = clue.load_bundle(out)
    assert bundle.spec.arguments == {"patch_size": 4}
    assert accuracies(bundle.model) == accuracies(trained())


def test_vit_b_16_forgets():
    """The real thing, 86 million weights, on small images; its head starts at zero, so it gets a random one."""
    spec = clue.ModelSpec("torchvision:vit_b_16", ("a", "b", "c"), (32, 32))
    torch.manual_seed(0)
    model = build_model(spec)
    nn.init.normal_(model.heads.head.weight, std=0.05)
    result = clue.forget(model, TensorDataset(torch.randn(2, 3, 32, 32)), 0, "delete", hyperparameters={"epochs": 1})
    assert result.report.weights_changed > 0.5


def test_influence_says_how_much_memory_it_wants(monkeypatch):
    from clue.methods import influence

    monkeypatch.setattr(influence, "_free_bytes", lambda _device: 1000)
    with pytest.raises(ForgetInputError, match=r"influence needs .* lower 'rank'"):
        clue.forget(trained(), forget_set(8), FORGET, "influence")
