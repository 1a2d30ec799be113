"""Every metric on inputs whose answer is known, so that a wrong formula fails."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset
from unlearning_nets import CLASSES, FORGET, labelled, trained

from clue import evaluate as ev
from clue._head import HeadError, classifier_head, tap_features
from clue.architectures import build_model
from clue.errors import DataError
from clue.spec import ModelSpec


def view_of(model, per_class=40):
    return ev.ModelView(model, labelled(per_class, seed=1), labelled(50, seed=2), FORGET)


def hide(model):
    """The class is as well known as ever, but its logit can no longer win."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[7].bias[FORGET] = -30.0
    return model


# -- accuracy ------------------------------------------------------------------------------------


def test_accuracies_of_a_model_that_hides_the_class():
    found = ev.ClassAccuracies().measure(view_of(hide(trained())))
    assert (found.ua.correct, found.ua.samples) == (0, 40)
    assert (found.ua_test.correct, found.ua_test.samples) == (0, 50)
    assert found.ra.samples == 120
    assert found.ta.value > 0.95


def test_evaluate_classes_agrees_with_the_view_and_keeps_modes():
    model = trained().train()
    model[1].eval()
    data = labelled(50, seed=2)
    ua, ra = ev.evaluate_classes(model, torch.utils.data.DataLoader(data, 7), FORGET)
    found = ev.ClassAccuracies().measure(view_of(model))
    assert (ua, ra) == (found.ua_test, found.ta)
    assert model.training
    assert not model[1].training
    with pytest.raises(DataError, match="no image"):
        ev.evaluate_classes(model, [], FORGET)


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_interval_holds_the_share(correct, samples):
    correct = min(correct, samples)
    accuracy = ev.Accuracy(correct, samples)
    low, high = accuracy.interval()
    assert 0.0 <= low <= accuracy.value + 1e-12
    assert accuracy.value - 1e-12 <= high <= 1.0
    # 20 times the images: the interval shrinks by more than 4.
    wide, narrow = high - low, ev.Accuracy(20 * correct, 20 * samples).interval()
    assert narrow[1] - narrow[0] < wide / 3


def test_wilson_interval_against_published_value():
    # 8 of 10: 0.490 to 0.943 (Newcombe, 1998, method 3)
    assert ev.Accuracy(8, 10).interval() == pytest.approx((0.490, 0.943), abs=1e-3)
    assert ev.Accuracy(0, 0).as_dict()["value"] is None


# -- membership ----------------------------------------------------------------------------------


def beta(count, a, b, seed):
    torch.manual_seed(seed)
    return torch.distributions.Beta(a, b).sample((count,))


def test_membership_calls_unlikely_images_non_members():
    members, outsiders = beta(300, 50.0, 1.0, 0), beta(300, 2.0, 2.0, 1)
    gone = ev.membership_inference(members, outsiders, torch.full((40,), 0.02))
    known = ev.membership_inference(members, outsiders, torch.full((40,), 0.999))
    assert gone.value == 1.0
    assert known.value == 0.0
    assert gone.attack_accuracy > 0.9
    assert gone.attack_samples == 600
    mixed = torch.cat([torch.full((10,), 0.02), torch.full((30,), 0.999)])
    assert ev.membership_inference(members, outsiders, mixed).non_members == ev.Accuracy(10, 40)


def test_membership_takes_equal_numbers_and_knows_when_it_guesses():
    same = beta(500, 5.0, 1.0, 0)
    result = ev.membership_inference(same[:250], same[250:400], same[400:])
    assert result.attack_samples == 300
    assert result.attack_accuracy < 0.65
    assert ev.membership_inference(same, same, same, limit=50).attack_samples == 100


def test_the_attack_answers_as_libsvm_does():
    from sklearn.svm import SVC

    from clue.evaluate._membership import _predict

    features = torch.cat([beta(400, 9.0, 1.0, 0), beta(400, 3.0, 1.0, 1)]).double().numpy()[:, None]
    truth = np.repeat([1, 0], 400)
    attacker = SVC(C=3.0, gamma="auto", kernel="rbf").fit(features, truth)
    # A fine grid crosses every boundary, where the order of a sum could change the answer.
    for asked in (features, np.linspace(0, 1, 2001)[:, None]):
        assert np.array_equal(_predict(attacker, asked), attacker.predict(asked))
    assert 0 < _predict(attacker, features).mean() < 1


def test_membership_refuses_what_it_cannot_use():
    some = torch.rand(10)
    with pytest.raises(DataError, match="needs retained"):
        ev.membership_inference(some, some[:0], some)
    with pytest.raises(DataError, match="finite"):
        ev.membership_inference(some, some, torch.full((3,), float("nan")))


def test_membership_of_a_model_that_forgot_is_high():
    metric = ev.MembershipInference()
    assert metric.measure(view_of(hide(trained()))).value == 1.0
    assert metric.measure(view_of(trained())).value < 0.6


def test_average_gap():
    oracle = {"ua": 0.0, "ra": 94.0, "ta": 88.0, "mia": 100.0}
    assert ev.average_gap(oracle, oracle) == 0.0
    assert ev.average_gap(oracle | {"ua": 8.0, "ta": 84.0}, oracle) == 3.0
    assert math.isnan(ev.average_gap({"ua": 1.0}, oracle))


# -- probe ---------------------------------------------------------------------------------------


def features(separable, seed):
    """Four classes; class FORGET is apart from the others, or drawn from the same cloud as class 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(400) % CLASSES
    found = torch.randn((400, 6), generator=generator)
    place = labels.clone()
    if not separable:
        place[labels == FORGET] = 0
    found[torch.arange(400), place] += 8.0
    # Scales that only standardisation makes comparable, and a feature that never moves.
    return torch.cat([found * torch.tensor([1.0, 1e3, 1.0, 1.0, 1e-3, 1.0]), torch.ones(400, 1)], 1), labels


def test_probe_finds_a_class_that_is_there_and_not_one_that_is_not():
    train, test = features(True, 0), features(True, 1)
    there = ev.linear_probe(*train, *test, FORGET)
    assert there.value > 0.97
    assert there.converged
    assert there.train_samples == 400
    gone = ev.linear_probe(*features(False, 0), *features(False, 1), FORGET)
    assert gone.value < 0.75
    # Class 0 shares its place, so about half of each is confused; the other two classes are not.
    assert gone.retained.value > 0.75


def test_probe_sees_through_a_hidden_logit():
    probe = ev.LinearProbe(per_class=40)
    hidden = hide(trained())
    assert ev.ClassAccuracies().measure(view_of(hidden)).ua.value == 0
    assert probe.measure(view_of(hidden)).value > 0.9


def test_probe_is_blind_where_the_features_are_gone():
    model = trained()
    with torch.no_grad():
        model[5].weight.zero_()  # every image has the same features now
    assert ev.LinearProbe().measure(view_of(model)).value <= 0.5


def test_probe_refuses_what_it_cannot_use():
    found, labels = features(True, 0)
    with pytest.raises(DataError, match="training images of the forget class"):
        ev.linear_probe(found[labels != FORGET], labels[labels != FORGET], found, labels, FORGET)
    with pytest.raises(DataError, match="test images of the forget class"):
        ev.linear_probe(found, labels, found[labels != FORGET], labels[labels != FORGET], FORGET)
    with pytest.raises(DataError, match="finite"):
        ev.linear_probe(found / 0, labels, found, labels, FORGET)
    headless = nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten())
    with pytest.raises(DataError, match="no linear classifier head"):
        ev.LinearProbe().measure(view_of(headless))


@pytest.mark.parametrize(
    ("architecture", "size", "width"),
    [("resnet20", 32, 64), ("small_vit", 32, 96), ("torchvision:resnet18", 64, 512),
     ("torchvision:mobilenet_v3_small", 64, 1024)],
)  # fmt: skip
def test_features_of_every_kind_of_net(architecture, size, width):
    model = build_model(ModelSpec(architecture, ("a", "b", "c"))).eval()
    with torch.no_grad(), tap_features(model) as tap:
        logits = model(torch.randn(2, 3, size, size))
        found = tap.features
    assert found.shape == (2, width)
    assert torch.allclose(classifier_head(model)(found), logits, atol=1e-5)
    # The tap is gone with the block.
    assert not classifier_head(model)._forward_pre_hooks


def test_net_without_a_head():
    with pytest.raises(HeadError):
        classifier_head(nn.Conv2d(3, 2, 1))


# -- relearning ----------------------------------------------------------------------------------


def test_a_hidden_class_comes_back_sooner_than_one_never_seen():
    metric = ev.Relearning(steps=(1, 8), draws=2)
    hidden, never = (metric.measure(view_of(model)) for model in (hide(trained()), trained(exclude=FORGET)))
    assert hidden.value(1) == never.value(1) == 0.0
    assert hidden.value(8) > 0.8
    assert never.value(8) < 0.2
    assert hidden.train_samples == 10 * CLASSES
    assert len(hidden.after[8]) == 2
    assert hidden.spread(8) >= 0


def test_resetting_the_head_undoes_a_suppressed_logit():
    hidden = hide(trained())
    weak = ev.Relearning(steps=(3,), draws=1).measure(view_of(hidden))
    strong = ev.Relearning(steps=(3,), draws=1, reset_head=True).measure(view_of(hidden))
    assert weak.value(3) < 0.1
    assert strong.value(3) > 0.5
    assert strong.head_reset


def test_relearning_leaves_model_and_statistics_alone():
    model = trained()
    before = copy.deepcopy(model.state_dict())
    data = labelled(10, seed=1).tensors
    kept = ev.relearn(model, *data, steps=(1, 3))
    assert sorted(kept) == [1, 3]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert torch.equal(kept[3][1].running_mean, model[1].running_mean)
    assert not torch.equal(kept[1][7].weight, kept[3][7].weight)


def test_relearning_works_on_a_frozen_model_and_is_repeatable():
    frozen = trained().requires_grad_(False)
    metric = ev.Relearning(draws=1)
    assert metric.measure(view_of(frozen)) == metric.measure(view_of(frozen))
    with pytest.raises(DataError, match="relearning needs"):
        metric.measure(ev.ModelView(frozen, labelled(5, 1, range(1)), labelled(5, 2), FORGET))


# -- outputs -------------------------------------------------------------------------------------


def test_separation_counts_pairs():
    # Free energy of [a, a] is -(a + log 2), so these two of six pairs are the wrong way round.
    forgotten = torch.tensor([[1.0, 1.0], [5.0, 5.0]])
    retained = torch.tensor([[2.0, 2.0], [3.0, 3.0], [9.0, 9.0]])
    found = ev.energy_separation(forgotten, retained)
    assert found.value == pytest.approx(4 / 6)
    assert (found.forget_samples, found.retained_samples) == (2, 3)
    assert found.mean_forget == pytest.approx(-3 - math.log(2))
    with pytest.raises(DataError):
        ev.energy_separation(forgotten[:0], retained)


def test_divergence_from_the_oracle():
    oracle = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    model = torch.log(torch.tensor([[0.25, 0.75], [0.9, 0.1]]))
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    found = ev.oracle_divergence(model, oracle)
    assert found.value == pytest.approx(expected / 2, rel=1e-5)
    assert found.standard_error == pytest.approx(expected / 2, rel=1e-5)
    assert ev.oracle_divergence(oracle + 7.0, oracle).value == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(DataError, match="same images"):
        ev.oracle_divergence(model[:1], oracle)


def test_divergence_falls_towards_the_oracle():
    oracle = trained(exclude=FORGET)
    answers = ev.answers(oracle, labelled(50, seed=2))
    metric = ev.OracleDivergence(answers)
    assert metric.measure(view_of(oracle)).value == pytest.approx(0.0, abs=1e-9)
    assert metric.measure(view_of(trained())).value > metric.measure(view_of(hide(trained()))).value > 0


def test_calibration_of_a_known_gap():
    # Always 0.8 sure, right in half of the cases.
    logits = torch.log(torch.tensor([[0.8, 0.2]])).repeat(10, 1)
    labels = torch.tensor([0, 1] * 5)
    assert ev.calibration_error(logits, labels).value == pytest.approx(0.3, abs=1e-6)
    honest = torch.tensor([0] * 8 + [1] * 2)
    assert ev.calibration_error(logits, honest).value == pytest.approx(0.0, abs=1e-6)
    two_bins = torch.cat([logits, torch.log(torch.tensor([[0.6, 0.4]])).repeat(10, 1)])
    both = ev.calibration_error(two_bins, torch.cat([labels, torch.zeros(10, dtype=torch.long)]))
    assert both.value == pytest.approx((0.3 + 0.4) / 2, abs=1e-6)


# -- quantisation --------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(0, 1000))
def test_rounding_stays_within_half_a_step(bits, seed):
    weight = torch.randn((5, 7), generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 3, 5)[:, None]
    rounded = ev.fake_quantise(weight, bits)
    step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert bool(((rounded - weight).abs() <= step * 0.5001).all())
    assert all(len(row.unique()) <= 2**bits - 1 for row in rounded)
    assert torch.allclose(ev.fake_quantise(rounded, bits), rounded, rtol=1e-4, atol=0)


def test_zero_weights_stay_zero():
    assert ev.fake_quantise(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    with pytest.raises(ValueError, match="2 bits"):
        ev.fake_quantise(torch.ones(1, 1), 1)


def test_rounding_brings_back_a_class_that_a_small_update_hid():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.5005], [1.0, 0.5010]]))  # both become 64/127
    images, labels = torch.tensor([[[[0.0, 1.0]]], [[[0.0, -1.0]]]]), torch.tensor([0, 1])
    view = ev.ModelView(model, TensorDataset(images, labels), TensorDataset(images, labels), 0)
    assert ev.ClassAccuracies().measure(view).ua.value == 0.0
    assert ev.QuantisedAccuracy(bits=8).measure(view).ua.value == 1.0
    assert ev.QuantisedAccuracy(bits=16).measure(view).ua.value == 0.0


def test_rounding_touches_weights_alone():
    model = trained()
    eight = ev.quantised_copy(model, 8)
    assert torch.equal(eight[7].bias, model[7].bias)
    assert not torch.equal(eight[0].weight, model[0].weight)
    assert torch.equal(eight[1].weight, model[1].weight)
    found = ev.QuantisedAccuracy().measure(view_of(model))
    assert found.bits == 8
    assert found.ua.value == pytest.approx(ev.ClassAccuracies().measure(view_of(model)).ua.value, abs=0.05)
    assert found.ta.samples == 150


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [ev.ClassAccuracies(), ev.MembershipInference(limit=50), ev.LinearProbe(), ev.Relearning(steps=(1,), draws=2),
     ev.EnergySeparation(), ev.CalibrationError(), ev.QuantisedAccuracy()],
    ids=lambda metric: type(metric).__name__,
)  # fmt: skip
def test_every_result_is_plain_data_with_counts(metric):
    found = metric.measure(view_of(trained()))
    text = json.dumps(found.as_dict(), allow_nan=False)
    assert "samples" in text
    assert "mean" in text or "low" in text or "bins" in text


def test_answers_keep_order_and_split_by_class():
    data = labelled(6, seed=1)
    found = ev.answers(trained(), data, batch_size=5)
    assert torch.equal(found.labels, data.tensors[1])
    assert found.features is not None
    assert found.features.shape == (24, 16)
    with torch.no_grad():
        assert torch.allclose(found.logits, trained()(data.tensors[0]), atol=1e-5)
    assert set(found.of_class(FORGET).labels.tolist()) == {FORGET}
    assert FORGET not in found.without_class(FORGET).labels.tolist()
    assert ev.first_per_class(found.labels, 2).tolist() == [0, 1, 6, 7, 12, 13, 18, 19]
    with pytest.raises(DataError, match="no image"):
        ev.answers(trained(), TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)))
