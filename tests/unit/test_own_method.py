"""The method that docs/methods.md teaches to write, taken from there and run."""

import re
from pathlib import Path

import pytest
from unlearning_nets import FORGET, accuracies, forget_set, trained

import clue
from clue.errors import HyperparameterError
from clue.methods import available_methods

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture
def documented():
    """Register the documented method, and take it away again."""
    from clue.methods import _registry

    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert not re.search(r"import _|\._[a-z]", code)
    before = dict(_registry._METHODS)
    exec(compile(code, str(DOCS), "exec"), {"__name__": "documented"})  # noqa: S102
    yield next(iter(_registry._METHODS.keys() - before.keys()))
    _registry._METHODS.clear()
    _registry._METHODS.update(before)


def test_the_documented_method_forgets(documented):
    assert documented in available_methods()
    model = trained()
    result = clue.forget(model, forget_set(), FORGET, documented, hyperparameters={"lr": 0.3, "epochs": 20})
    assert accuracies(model)[0] > 0.95
    assert accuracies(result.model)[0] < 0.5
    assert result.report.method == documented
    assert result.report.hyperparameters["sharpness"] == 1.0


def test_its_settings_are_checked(documented):
    for wrong in ({"sharpness": -1.0}, {"lr": 0.0}, {"sharpnes": 1.0}):
        with pytest.raises(HyperparameterError, match=next(iter(wrong))):
            clue.forget(trained(), forget_set(4), FORGET, documented, hyperparameters=wrong)


def test_every_method_is_documented():
    table = DOCS.read_text(encoding="utf-8").partition("## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    built_in = {name for name in available_methods() if "clue.methods." in clue.methods.get_method(name).run.__module__}
    assert set(rows) == built_in
    assert len(rows) == len(set(rows))
