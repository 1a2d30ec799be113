import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import clue
from clue.errors import ForgetDivergedError, ForgetInputError, HyperparameterError, UnknownMethodError

# Enough to forget red on the tiny model, quickly.
FAST = {
    "epochs": 6,
    "min_steps": 0,
    "max_steps": 0,
    "stop_accuracy": -1.0,
    "clip_norm": 0.0,
    "noise_cells": 0,
    "energy": "logsumexp",
    "lr": 5e-3,
    "energy_weight": 1.0,
    "kd_weight": 0.1,
    "mask_level": 0.3,
}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(model: nn.Module, data, **changes) -> clue.ForgetResult:
    options = {key: changes.pop(key) for key in ("seed", "progress", "batch_size") if key in changes}
    return clue.forget(model, data, 0, hyperparameters=FAST | changes, **options)


def test_the_class_is_forgotten_and_the_original_left_alone(bundle, reds, train_cache) -> None:
    before = state(bundle.model)
    batch = train_cache.batch(torch.arange(len(train_cache.labels)))
    ua_before, ra_before = clue.evaluate_classes(bundle.model, [batch], 0)
    assert ua_before.value > 0.9
    assert ra_before.value > 0.9
    result = run(bundle.model, reds, epochs=100, stop_accuracy=0.0, lr=0.02, noise_level=4.0)
    ua, _ra = clue.evaluate_classes(result.model, [batch], 0)
    assert ua.value <= 0.05
    assert same(before, state(bundle.model))
    assert result.model is not bundle.model
    assert not result.model.training
    assert result.report.forget_accuracy[-1] == 0.0
    assert result.report.epochs < 100


@pytest.mark.parametrize("training", [True, False])
def test_every_modules_mode_comes_back(bundle, reds, training: bool) -> None:
    bundle.model.train(training)
    bundle.model.bn1.train(not training)
    run(bundle.model, reds, epochs=1)
    assert bundle.model.training is training
    assert bundle.model.bn1.training is not training


def test_the_mode_comes_back_after_an_error_too(bundle) -> None:
    bundle.model.train()
    with pytest.raises(ForgetInputError):
        run(bundle.model, TensorDataset(torch.zeros(2, 5, 8, 8)))
    assert bundle.model.training


def test_batch_norm_statistics_stay(bundle, reds) -> None:
    result = run(bundle.model, reds, epochs=2)
    buffers = dict(bundle.model.named_buffers())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in result.model.named_buffers())
    assert not same(state(bundle.model), state(result.model))


def test_same_seed_same_weights_other_seed_other_weights(bundle, reds) -> None:
    results = [run(bundle.model, reds, seed=seed, batch_size=8, epochs=2) for seed in (1, 1, 2)]
    first, again, other = (state(result.model) for result in results)
    assert same(first, again)
    assert not same(first, other)


def test_the_callers_random_state_is_untouched(bundle, reds) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(bundle.model, reds, epochs=1)
    assert torch.equal(torch.rand(1), expected)


def test_frozen_parameters_stay_and_a_frozen_model_is_refused(bundle, reds) -> None:
    for parameter in bundle.model.layer1.parameters():
        parameter.requires_grad_(False)
    result = run(bundle.model, reds, epochs=2)
    assert same(state(bundle.model.layer1), state(result.model.layer1))
    assert not same(state(bundle.model.layer3), state(result.model.layer3))
    with pytest.raises(ForgetInputError, match="frozen"):
        run(bundle.model.requires_grad_(False), reds)


@pytest.mark.parametrize("level", [0.02, 0.1, 0.5])
def test_the_masks_density_is_kept(bundle, reds, level: float) -> None:
    result = run(bundle.model, reds, epochs=1, mask_level=level)
    assert result.report.mask_density == [pytest.approx(level, rel=0.01)]
    assert 0 < result.report.weights_changed <= level * 1.01


def test_mask_none_and_threshold(bundle, reds) -> None:
    assert run(bundle.model, reds, epochs=1, mask="none").report.mask_density == [1.0]
    # Eq. 6 with a threshold that no weight reaches frees none.
    held = run(bundle.model, reds, epochs=1, mask="threshold", mask_level=1e9)
    assert held.report.mask_density == [0.0]
    assert held.report.weights_changed == 0.0
    assert same(state(bundle.model), state(held.model))


def test_diverged_returns_no_model_and_leaves_the_original(bundle, reds) -> None:
    before = state(bundle.model)
    with pytest.raises(ForgetDivergedError, match="lower the learning rate"):
        run(bundle.model, reds, lr=1e30, epochs=5, mask="none")
    assert same(before, state(bundle.model))


def test_nan_in_an_image_is_refused(bundle, reds) -> None:
    images = reds.tensors[0].clone()
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(ForgetInputError, match="NaN"):
        run(bundle.model, TensorDataset(images))


def test_nan_in_the_model_is_refused(bundle, reds) -> None:
    with torch.no_grad():
        bundle.model.linear.bias[1] = torch.nan
    with pytest.raises(ForgetDivergedError):
        run(bundle.model, reds)


def test_eq_2_as_printed_overflows_where_the_logarithm_does_not(bundle, reds) -> None:
    with torch.no_grad():
        bundle.model.linear.bias += 200
    with pytest.raises(ForgetDivergedError):
        run(bundle.model, reds, energy="partition")
    run(bundle.model, reds, energy="logsumexp", epochs=1)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.zeros(4, 3, 8, 8), torch.tensor([0, 0, 2, 0]), "class 2"),
        (torch.zeros(0, 3, 8, 8), torch.zeros(0), "empty"),
        (torch.zeros(4, 8, 8), torch.zeros(4), r"\(N, C, H, W\)"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4), "cannot take images"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.float64), torch.zeros(4), "cannot take images"),
    ],
)
def test_senseless_forget_sets_are_refused(bundle, images, labels, said) -> None:
    with pytest.raises(ForgetInputError, match=said):
        run(bundle.model, TensorDataset(images, labels))


@pytest.mark.parametrize("index", [-1, 4])
def test_no_such_logit(bundle, reds, index: int) -> None:
    with pytest.raises(ForgetInputError, match="class"):
        clue.forget(bundle.model, TensorDataset(reds.tensors[0]), index)


def test_a_wrong_label_in_a_late_batch_is_still_refused(bundle, reds) -> None:
    images, labels = reds.tensors
    labels = torch.cat([labels[:-1], torch.tensor([3])])
    with pytest.raises(ForgetInputError, match="class 3"):
        run(bundle.model, DataLoader(TensorDataset(images, labels), batch_size=4))


def test_progress_after_every_epoch(bundle, reds) -> None:
    seen: list[clue.Progress] = []
    result = run(bundle.model, reds, epochs=3, progress=seen.append)
    assert [step.epoch for step in seen] == [1, 2, 3]
    assert [step.fraction for step in seen] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [step.loss for step in seen] == [losses["total"] for losses in result.report.losses]


def test_min_steps_raises_the_epochs(bundle, reds) -> None:
    # 20 images in batches of 8 are 3 steps an epoch.
    assert run(bundle.model, reds, epochs=1, min_steps=7, batch_size=8).report.epochs == 3


class Images(Dataset):
    """A data set of images alone, without labels."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_loaders_data_sets_and_bare_images_give_the_same(bundle, reds) -> None:
    sources = [reds, Images(reds.tensors[0]), DataLoader(reds, batch_size=64)]
    reports = [run(bundle.model, source, epochs=2, noise_level=0.0).report for source in sources]
    assert [report.samples for report in reports] == [20, 20, 20]
    for report in reports[1:]:
        for mine, first in zip(report.losses, reports[0].losses, strict=True):
            assert mine == pytest.approx(first, rel=1e-3, abs=1e-5)


def test_one_image_is_enough_to_run(bundle, reds) -> None:
    result = run(bundle.model, Subset(reds, [0]), epochs=2)
    assert result.report.samples == 1
    assert result.report.weights_changed > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(bundle, reds, dtype: torch.dtype) -> None:
    model = bundle.model.to(dtype)
    result = run(model, Images(reds.tensors[0].to(dtype)), epochs=2)
    assert next(result.model.parameters()).dtype == dtype
    assert result.report.weights_changed > 0


def test_unknown_method_and_settings(bundle, reds) -> None:
    with pytest.raises(UnknownMethodError, match="clue"):
        clue.forget(bundle.model, reds, 0, method="amnesia")
    for wrong in (
        {"lrr": 1.0},
        {"lr": -1.0},
        {"epochs": 0},
        {"epochs": 1.5},
        {"noise": "pink"},
        {"mask": "x"},
    ):
        with pytest.raises(HyperparameterError, match=next(iter(wrong))):
            clue.forget(bundle.model, reds, 0, hyperparameters=wrong)
    with pytest.raises(ForgetInputError, match="batch_size"):
        clue.forget(bundle.model, reds, 0, batch_size=0)


def test_report_is_plain_data(bundle, reds) -> None:
    import json

    report = run(bundle.model, reds, epochs=1).report
    body = json.loads(json.dumps(report.as_dict()))
    assert body["energy"]["joules"] == report.joules >= 0
    assert body["hyperparameters"]["lr"] == FAST["lr"]
    assert report.seconds > 0
    assert report.peak_memory_bytes > 10 * 2**20
    assert str(report).startswith("clue: 20 samples, 1 epochs")
    assert "\n" not in str(report)


def test_a_method_of_ones_own(bundle, reds) -> None:
    from clue.methods import ForgetJob, Hyperparameters
    from clue.methods._job import EpochRecord
    from clue.methods._registry import _METHODS

    @dataclasses.dataclass(frozen=True)
    class Settings(Hyperparameters):
        bias: float = -100.0

    @clue.register_method("bias", Settings)
    def mute(job: ForgetJob, hp: Settings) -> None:
        samples = sum(len(images) for images in job.batches())
        with torch.no_grad():
            job.student.linear.bias[job.forget_class] = hp.bias
        assert samples == 20
        job.end_epoch(EpochRecord({"total": 0.0}, 1.0), 1)

    try:
        result = clue.forget(bundle.model, reds, 0, method="bias")
        assert clue.evaluate_classes(result.model, [reds.tensors], 0)[0].value == 0.0
        with pytest.raises(ValueError, match="already"):
            clue.register_method("bias", Settings)(mute)
    finally:
        del _METHODS["bias"]


def test_a_model_on_its_copy_shares_no_memory(bundle, reds) -> None:
    result = run(bundle.model, reds, epochs=1)
    kept = state(result.model)
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.zero_()
    assert same(kept, state(result.model))
    assert same(kept, state(copy.deepcopy(result.model)))
