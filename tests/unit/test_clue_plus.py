"""What is particular to clue_plus: depth, the row, earlier erasures, proxies."""

import pytest
import torch
from torch.utils.data import TensorDataset

import clue
from clue._head import silent_rows
from clue.data import DIGIT_CLASSES, image_folder, write_digits
from clue.errors import HyperparameterError
from clue.methods._erasure import FeatureBank, discriminant
from clue.methods._synthesis import synthesise
from clue.train import ImageCache, Recipe, train

QUICK = {"steps": 120, "proxies_per_class": 20, "proxy_steps": 8}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small trained net on 8x8 digits, with its images by split."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("digits")
    write_digits(root)
    spec = clue.ModelSpec("resnet20", DIGIT_CLASSES, input_size=(8, 8))
    data = {split: ImageCache.of(image_folder(root / split, spec), spec) for split in ("train", "test")}
    model = train(spec, data["train"], recipe=Recipe(epochs=8, batch_size=64, peak_lr=0.2)).model
    yield model, {split: cache.batch(torch.arange(len(cache.labels))) for split, cache in data.items()}
    torch.set_num_threads(threads)


def forget(model, data, index, **settings):
    images, labels = data["train"]
    return clue.forget(
        model, TensorDataset(images[labels == index]), index, method="clue_plus", hyperparameters=QUICK | settings
    ).model


@torch.no_grad()
def accuracies(model, data, gone):
    images, labels = data["test"]
    right = model(images).argmax(1) == labels
    lost = torch.isin(labels, torch.tensor(gone))
    return float(right[lost].float().mean()), float(right[~lost].float().mean())


@pytest.mark.parametrize(("depth", "steps"), [(0.0, 120), (0.5, 120), (1.0, 60)])
def test_the_class_goes_and_the_others_stay(digits, depth, steps):
    model, data = digits
    before = accuracies(model, data, [8])
    ua, ra = accuracies(forget(model, data, 8, depth=depth, steps=steps), data, [8])
    assert ua == 0.0
    assert ra > before[1] - 0.04


def test_classes_can_be_forgotten_one_after_the_other(digits):
    model, data = digits
    _, before = accuracies(model, data, [8, 3])
    twice = forget(forget(model, data, 8), data, 3)
    ua, ra = accuracies(twice, data, [8, 3])
    assert ua == 0.0
    assert ra > before - 0.04


def test_a_row_against_the_mean_feature_is_silent_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 5)
    mean = torch.rand(16, generator=generator)
    with torch.no_grad():
        head.weight[3], head.bias[3] = -0.1 * mean, -0.1
    assert silent_rows(head, mean) == [3]


def test_parameters_and_gradient_flags_are_given_back(digits):
    model, data = digits
    done = forget(model, data, 8)
    assert [p.requires_grad for p in done.parameters()] == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in done.parameters())
    early = [name for name, _ in model.named_parameters() if name.startswith(("conv1", "bn1", "layer1"))]
    states = model.state_dict(), done.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in early)


def test_proxies_are_what_the_model_takes_for_their_class(digits):
    model, data = digits
    images, labels = data["train"]
    seeds = images[labels == 8]
    others = [c for c in range(10) if c != 8]
    made = synthesise(model, seeds, others, 6, 15, torch.Generator().manual_seed(0))
    assert made.images.shape == (54, 3, 8, 8)
    assert set(made.labels.tolist()) <= set(others)
    assert len(set(made.labels.tolist())) >= 6
    with torch.no_grad():
        hit = (
            (model(made.images)[:, others].argmax(1) == torch.tensor([others.index(c) for c in made.labels.tolist()]))
            .float()
            .mean()
        )
    assert hit == 1.0
    assert float(made.images.min()) >= float(seeds.min())
    assert float(made.images.max()) <= float(seeds.max())


def test_the_discriminant_points_from_the_retained_to_the_forget_features():
    generator = torch.Generator().manual_seed(0)
    retained = torch.randn(300, 4, generator=generator)
    labels = torch.nn.functional.one_hot(torch.arange(300) % 3, 3).float()
    shifted = torch.randn(200, 4, generator=generator) + torch.tensor([0.0, 3.0, 0.0, 0.0])
    common, _ = discriminant(FeatureBank(shifted, torch.full((200, 3), 1 / 3)), retained, labels)
    assert int(common.abs().argmax()) == 1
    assert common[1] > 1
    same, _ = discriminant(FeatureBank(retained[:200].clone(), labels[:200]), retained, labels)
    assert float(same.abs().max()) < 0.3


def test_the_bank_is_a_ring():
    bank = FeatureBank(torch.zeros(4, 2), torch.zeros(4, 3))
    bank.push(torch.ones(3, 2), torch.ones(3, 3))
    bank.push(torch.full((2, 2), 2.0), torch.ones(2, 3))
    assert bank.features[:, 0].tolist() == [2.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 1.1), ("depth", -0.1), ("steps", 0), ("lr", 0.0), ("free_share", 0.0), ("batch", 0), ("sharpness", 0.0)],
)
def test_settings_out_of_range_are_refused(digits, name, value):
    model, data = digits
    with pytest.raises(HyperparameterError, match=name):
        forget(model, data, 8, **{name: value})


def test_a_deeper_run_frees_more_layers(digits):
    model, data = digits
    shallow, deep = (forget(model, data, 8, depth=depth, steps=2, proxy_steps=1) for depth in (0.7, 0.95))
    before = model.state_dict()

    def changed(after):
        return {name for name, value in after.state_dict().items() if not torch.equal(value, before[name])}

    assert changed(shallow) < changed(deep)
    assert not any(name.startswith("layer3.1") for name in changed(shallow))
    assert any(name.startswith("layer3.1") for name in changed(deep))
