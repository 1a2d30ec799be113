"""Every registered method: the contract they share, on a tiny net that learns in a moment."""

import copy
from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn
from unlearning_nets import CLASSES, FORGET, SIZE, accuracies, forget_set, trained

import clue
from clue._head import HeadError
from clue.errors import ClueError, ForgetDivergedError, ForgetInputError, HyperparameterError, UnknownMethodError
from clue.methods import ForgetJob, Hyperparameters, available_methods, get_method, register_method

METHODS = available_methods()

# The defaults are set for ResNet-20 and 1,500 images. The tiny net sees 64 and is far from any
# boundary, so it takes stronger steps; a method that is not named here must do with its defaults.
STRONG = {
    "boundary_expanding": {"lr": 0.1, "momentum": 0.0, "epochs": 20},
    "boundary_shrinking": {"lr": 0.1, "momentum": 0.0},
    "clue": {
        "lr": 0.1, "noise_level": 5.0, "noise_cells": 0, "epochs": 40, "max_steps": 0, "clip_norm": 0.0,
        "kd_weight": 1.0, "energy_weight": 0.01, "mask_level": 0.1,
    },
    "delete": {"lr": 0.1, "epochs": 10},
    "gradient_ascent": {"lr": 0.5, "epochs": 40},
    "lipschitz": {"lr": 1.0, "epochs": 40},
    "random_labels": {"lr": 0.1, "epochs": 10},
    "random_soft_labels": {"lr": 0.1, "epochs": 10},
    "salun": {"lr": 0.1, "epochs": 10},
    "selective_synaptic_dampening": {"alpha": 1.0},
    "unsir": {"lr": 0.1, "epochs": 10},
}  # fmt: skip


def run(method, model=None, data=None, seed=0, **settings):
    return clue.forget(
        trained() if model is None else model,
        forget_set() if data is None else data,
        FORGET,
        method,
        seed,
        hyperparameters=STRONG.get(method, {}) | settings,
    )


def state_equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_every_baseline_of_the_paper_is_there():
    assert set(METHODS) >= {
        "boundary_expanding", "boundary_shrinking", "clue", "delete", "gradient_ascent", "influence",
        "lipschitz", "random_labels", "random_soft_labels", "salun", "selective_synaptic_dampening", "unsir",
    }  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_forgets_and_leaves_the_original_alone(method):
    model = trained()
    before = copy.deepcopy(model)
    assert accuracies(model)[0] > 0.95
    result = run(method, model)
    assert accuracies(result.model)[0] < 0.5
    assert state_equal(model, before)
    assert result.model is not model
    assert not any(module.training for module in result.model.modules())
    assert result.report.samples == 64
    assert result.report.weights_changed > 0
    assert all(parameter.grad is None for parameter in result.model.parameters())


# Methods that say what the other classes should look like keep them; the rest only hope to.
@pytest.mark.parametrize("method", ["delete", "boundary_shrinking", "influence"])
def test_keeps_the_other_classes(method):
    assert accuracies(run(method).model)[1] > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_statistics_stay(method):
    model = trained()
    result = run(method, model).model
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(result[1], name), getattr(model[1], name))


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_weights(method):
    torch.manual_seed(1)
    first = run(method, seed=3).model
    torch.manual_seed(2)
    assert state_equal(first, run(method, seed=3).model)


@pytest.mark.parametrize("method", ["random_labels", "salun", "unsir", "lipschitz"])
def test_another_seed_gives_other_weights(method):
    assert not state_equal(run(method, seed=0).model, run(method, seed=1).model)


@pytest.mark.parametrize("method", METHODS)
def test_one_sample_is_enough_to_run(method):
    result = clue.forget(trained(), forget_set(1), FORGET, method)
    assert result.report.samples == 1
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_works_without_batch_norm(method):
    result = run(method, trained(batch_norm=False))
    assert result.report.weights_changed > 0


@pytest.mark.parametrize("method", METHODS)
def test_frozen_model_is_refused(method):
    model = trained().requires_grad_(False)
    with pytest.raises(ForgetInputError, match="frozen"):
        run(method, model)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_stay(method):
    model = trained()
    model[0].requires_grad_(False)
    result = run(method, model).model
    assert torch.equal(result[0].weight, model[0].weight)
    assert not torch.equal(result[7].weight, model[7].weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_works_or_says_why_not(method, dtype):
    model = trained().to(dtype)
    images = forget_set(16).tensors[0].to(dtype)
    message = ""
    try:
        result = run(method, model, torch.utils.data.TensorDataset(images))
    except ClueError as error:  # fp16 may overflow; whatever else is raised fails the test
        message = str(error)
    if message:
        assert "\n" not in message
    else:
        assert {p.dtype for p in result.model.parameters()} == {dtype}
        assert all(torch.isfinite(p).all() for p in result.model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_images_of_another_precision_get_a_clear_error(method):
    with pytest.raises(ForgetInputError, match="cannot take images"):
        run(method, trained().half())


@pytest.mark.parametrize("method", METHODS)
def test_progress_never_falls(method):
    seen = []
    clue.forget(
        trained(),
        forget_set(),
        FORGET,
        method,
        progress=lambda step: seen.append(step.fraction),
        hyperparameters=STRONG.get(method),
    )
    assert seen
    assert seen == sorted(seen)
    assert seen[-1] <= 1.0


@pytest.mark.parametrize("method", METHODS)
def test_infinite_weights_are_never_returned(method):
    model = trained()
    with torch.no_grad():
        model[7].bias[0] = float("nan")
    with pytest.raises(ForgetDivergedError):
        run(method, model)


NUMBERS = [
    (method, field.name)
    for method in METHODS
    for field in fields(get_method(method).hyperparameters)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_every_number_has_a_range(method, name):
    with pytest.raises(HyperparameterError, match=f"^{name} must be "):
        clue.forget(trained(), forget_set(1), FORGET, method, hyperparameters={name: type_of(method, name)(-3)})


@pytest.mark.parametrize(("method", "name"), NUMBERS)
def test_nan_is_refused_everywhere(method, name):
    if type_of(method, name) is float:
        with pytest.raises(HyperparameterError, match=f"^{name} must be "):
            clue.forget(trained(), forget_set(1), FORGET, method, hyperparameters={name: float("nan")})


def type_of(method, name):
    defaults = {field.name: field.default for field in fields(get_method(method).hyperparameters)}
    return type(defaults[name])


@pytest.mark.parametrize("method", METHODS)
def test_settings_say_what_they_mean(method):
    cls = get_method(method).hyperparameters
    documented = "".join(base.__doc__ or "" for base in cls.__mro__ if issubclass(base, Hyperparameters))
    assert all(f"{field.name}" in documented for field in fields(cls))
    assert cls().__class__.__dataclass_params__.frozen


def test_unknown_setting_and_method():
    with pytest.raises(HyperparameterError, match="no hyper-parameter 'learning_rate'"):
        run("delete", learning_rate=1.0)
    with pytest.raises(UnknownMethodError, match="choose one of"):
        run("oblivion")


def test_a_method_registered_from_outside():
    @dataclass(frozen=True)
    class Zero(Hyperparameters):
        row: bool = True

    name = "zero_the_row"
    if name not in available_methods():

        @register_method(name, Zero)
        def zero(job: ForgetJob, hp: Zero) -> None:
            for _ in job.batches():
                pass
            with torch.no_grad():
                job.student[7].weight[job.forget_class] = 0.0
                job.student[7].bias[job.forget_class] = -100.0

    result = clue.forget(trained(), forget_set(), FORGET, name)
    assert accuracies(result.model)[0] == 0.0
    assert result.report.method == name
    with pytest.raises(ValueError, match="already registered"):
        register_method("delete", Zero)(lambda job, hp: None)


def test_early_stop_and_least_steps():
    stopped = run("delete", lr=0.5, epochs=50, stop_accuracy=0.0)
    assert stopped.report.epochs < 50
    assert stopped.report.forget_accuracy[-1] == 0.0
    few = run("delete", data=forget_set(4), epochs=1, min_steps=7)
    assert few.report.epochs == 7


def test_momentum_and_clipping_change_the_path():
    plain = run("delete").model
    assert not state_equal(plain, run("delete", momentum=0.9).model)
    assert not state_equal(plain, run("delete", clip_norm=1e-3).model)
    assert state_equal(plain, run("delete", clip_norm=1e9).model)


def test_clipping_bounds_the_step():
    before = trained()
    after = run("gradient_ascent", before, lr=10.0, epochs=1, clip_norm=0.01).model
    pairs = list(zip(before.state_dict().values(), after.state_dict().values(), strict=True))
    moved = sum(float((new - old).double().square().sum()) for old, new in pairs)
    assert moved**0.5 == pytest.approx(10.0 * 0.01, rel=1e-3)


def test_salun_changes_only_its_share():
    result = run("salun", mask_fraction=0.25)
    assert result.report.weights_changed <= 0.26
    assert result.report.mask_density[0] == pytest.approx(0.25, abs=0.01)


def test_dampening_only_shrinks():
    before = trained()
    after = run("selective_synaptic_dampening", before).model
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert bool((new.abs() <= old.abs() + 1e-7).all())
        assert bool((new * old >= 0).all())
    few = run("selective_synaptic_dampening", alpha=1e3).report.weights_changed
    assert 0 < few < run("selective_synaptic_dampening", alpha=1.0).report.weights_changed / 2


def test_influence_is_the_newton_step():
    """The Woodbury form against the explicit inverse on a model small enough to invert."""
    from clue.methods.influence import _newton_step

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((3, 5), generator=generator, dtype=torch.float64)
    step = torch.cat(_newton_step([[row[:2], row[2:]] for row in rows], damping=0.3))
    fisher = rows.T @ rows / 3 + 0.3 * torch.eye(5, dtype=torch.float64)
    assert torch.allclose(step, torch.linalg.solve(fisher, rows.mean(0)), atol=1e-5)


def test_boundary_expanding_keeps_the_heads_shape_and_needs_a_head():
    assert run("boundary_expanding").model[7].weight.shape == (CLASSES, 16)
    pool = nn.Sequential(nn.Conv2d(3, 2, SIZE), nn.Flatten())
    with pytest.raises(HeadError, match="no linear layer"):
        clue.forget(pool, forget_set(2), FORGET, "boundary_expanding")


def test_targets_never_name_the_forget_class():
    from clue.methods._targets import random_other_labels, without_class

    for forget_class in range(CLASSES):
        labels = random_other_labels(500, CLASSES, forget_class, torch.Generator().manual_seed(0))
        assert set(labels.tolist()) == set(range(CLASSES)) - {forget_class}
        logits = torch.full((2, CLASSES), 50.0)
        assert without_class(logits, forget_class).softmax(1)[:, forget_class].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_are_enough(method):
    """A binary model has one other class: every target is that class."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 8), nn.ReLU(), nn.Linear(8, 2))
    result = clue.forget(model, forget_set(8), FORGET, method)
    assert result.report.samples == 8


def test_steps_are_limited_and_every_image_is_counted():
    report = run("clue", data=forget_set(100), epochs=5, max_steps=1, stop_accuracy=-1.0).report
    assert report.epochs == 1
    assert report.samples == 100
    # All but the first batch is left out, but what is reported is a mean over that batch.
    assert 0 < report.losses[0]["kd"] < 20
