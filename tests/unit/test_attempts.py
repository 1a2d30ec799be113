"""clue_plus at depth 1: it attacks its own result, and erases once more where that gives way."""

import copy
import gc
import math
import weakref

import pytest
import torch
from unlearning_nets import CLASSES, FORGET, forget_set, images_of, trained

import clue
from clue.evaluate import relearn
from clue.methods import _attack, _attempts
from clue.methods._attack import attackers_batch, steps_resisted
from clue.methods._knowledge import Knowledge
from clue.methods._synthesis import Proxies

QUICK = {"steps": 6, "proxies_per_class": 4, "proxy_steps": 2, "batch": 16}


def forget(progress=None, checkpoint=None, **settings):
    return clue.forget(
        trained(), forget_set(50), FORGET, "clue_plus", 0, progress,
        hyperparameters=QUICK | settings, batch_size=20, checkpoint=checkpoint,
    )  # fmt: skip


@pytest.fixture
def resisting(monkeypatch):
    """Sets what the attacks find, one after the other; the number of attacks that were made."""
    made = []

    def set_to(*steps):
        def attack(model, images, classes, limit):
            made.append(copy.deepcopy(model.state_dict()))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(7.0)
            return min(steps[len(made) - 1], limit)

        monkeypatch.setattr(_attempts, "steps_resisted", attack)
        return made

    return set_to


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("found", "attacks", "kept"), [((60,), 1, 0), ((40, 50), 2, 1), ((40, 30), 2, 0), ((9, 9), 2, 0), ((0, 0), 2, 1)]
)
def test_what_resists_longer_is_kept(resisting, found, attacks, kept):
    made = resisting(*found)
    result = forget(depth=1.0)
    assert len(made) == attacks
    assert same(result.model, made[kept])
    assert [p.requires_grad for p in result.model.parameters()] == [p.requires_grad for p in trained().parameters()]


def test_the_first_attempt_is_an_ordinary_run_with_less_weight_and_fewer_layers(resisting):
    resisting(60)
    milder = {"depth": math.sqrt(0.72), "free_share": 0.2 * 0.9 / 0.72}
    assert same(forget(depth=1.0).model, forget(**milder).model.state_dict())


def test_the_second_attempt_starts_from_the_original(resisting):
    made = resisting(1, 2)
    forget(depth=1.0)
    before = trained().state_dict()
    first, second = ({name for name in state if not torch.equal(state[name], before[name])} for state in made)
    assert first <= second
    assert second < set(before)


def test_below_depth_1_nothing_is_attacked(resisting):
    made = resisting()
    forget(depth=0.99)
    assert made == []


def test_progress_covers_both_attempts(resisting):
    resisting(1, 2)
    fractions = []
    forget(lambda step: fractions.append(step.fraction), depth=1.0)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) == 13


def test_progress_ends_at_one_where_one_attempt_is_enough(resisting):
    resisting(60)
    fractions = []
    forget(lambda step: fractions.append(step.fraction), depth=1.0)
    assert fractions[-2:] == [0.5, 1.0]


@pytest.mark.parametrize(("found", "kept"), [((40, 50), 1), ((40, 30), 0)])
def test_the_report_is_of_the_attempt_that_is_kept(resisting, found, kept):
    resisting(*found)
    losses = []
    report = forget(lambda step: losses.append(step.loss), depth=1.0).report
    assert [epoch["total"] for epoch in report.losses] == losses[:12][6 * kept : 6 * kept + 6]


def test_a_judged_attempt_is_neither_made_nor_attacked_again(resisting):
    class Kept:
        every_seconds = 0.0
        last = None

        def save(self, data):
            self.last = data

        def load(self):
            return self.last

    made, kept = resisting(20, 30), Kept()
    expected = forget(depth=1.0, checkpoint=kept)
    made.clear()
    resisting(30)
    resumed = forget(depth=1.0, checkpoint=kept)
    assert len(made) == 1
    assert same(resumed.model, expected.model.state_dict())
    assert resumed.report.losses == expected.report.losses
    assert not resumed.report.warnings


def test_the_first_attempt_is_gone_from_memory_when_it_is_attacked(monkeypatch):
    alive = []
    gc.disable()
    try:
        make = _attempts.Eraser

        def remember(*arguments, **options):
            eraser = make(*arguments, **options)
            alive.append(weakref.ref(eraser))
            return eraser

        monkeypatch.setattr(_attempts, "Eraser", remember)
        monkeypatch.setattr(_attempts, "steps_resisted", lambda *_: alive.append(alive[-1]()) or 0)
        forget(depth=1.0)
    finally:
        gc.enable()
    assert len(alive) == 4
    assert alive[1] is None
    assert alive[3] is None


def known(count=30):
    """What a model would know; the proxies are the real thing here."""
    retained = [label for label in range(CLASSES) if label != FORGET]
    proxies = Proxies(
        torch.cat([images_of(label, 4 + 4 * label, seed=5) for label in retained]),
        torch.tensor([label for label in retained for _ in range(4 + 4 * label)]),
    )
    return Knowledge(images_of(FORGET, count, seed=5), proxies, [FORGET])


def batch():
    return attackers_batch(known(), FORGET)


def test_the_attackers_batch_has_at_most_ten_images_of_each_class():
    images, classes = batch()
    assert torch.bincount(classes).tolist() == [4, 10, 10, 10]
    assert (classes[:10] == FORGET).all()
    assert torch.equal(images[:10], images_of(FORGET, 30, seed=5)[:10])


def test_a_model_that_knows_the_class_resists_no_step_and_one_that_was_erased_some():
    original, erased = trained(), forget(steps=60).model
    attacker = batch()
    assert steps_resisted(copy.deepcopy(original), *attacker, 60) == 0
    assert steps_resisted(copy.deepcopy(erased), *attacker, 60) > 5
    assert steps_resisted(copy.deepcopy(erased), *attacker, 3) == 3


def test_the_attack_is_that_of_the_evaluation(monkeypatch):
    """Same loss after the same steps as :func:`clue.evaluate.relearn`, whatever the pieces."""
    erased = forget(steps=60).model
    images, classes = batch()
    attacked = copy.deepcopy(erased)
    monkeypatch.setattr(_attack, "_BACK", -1.0)
    monkeypatch.setattr(_attack, "_PIECE", 7)
    assert steps_resisted(attacked, images, classes, 5) == 5
    theirs = relearn(erased, images, classes, steps=(5,))[5]
    for own, other in zip(attacked.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 10, 30])
def test_few_images_weigh_as_much_as_ten(count):
    images, classes = attackers_batch(known(count), FORGET)
    assert int((classes == FORGET).sum()) == 10
    assert torch.equal(images[:10][:count], images_of(FORGET, count, seed=5)[:10])


def test_parameters_that_have_no_gradient_are_left_alone():
    model = trained()
    model.register_parameter("table", torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    assert steps_resisted(model, *batch(), 3) == 0
    assert not model.table.requires_grad


def test_an_attack_that_diverges_tells_nothing():
    erased = forget(steps=60).model
    images, classes = batch()
    assert steps_resisted(copy.deepcopy(erased), images * math.inf, classes, 9) == 0


def test_flags_and_gradients_are_given_back_by_the_attack():
    model = trained()
    first = next(model.parameters()).requires_grad_(False)
    steps_resisted(model, *batch(), 2)
    assert not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
