"""Selectors and the devices that they choose."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clue_coordinator.errors import UsageError
from clue_coordinator.models import Device
from clue_coordinator.targets import Selector, Target
from clue_protocol.documents import check_label

LABELS = {"site": "paris", "hw": "pi5", "rack.row": "a-1/2:3+4"}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("", True),
        ("  ", True),
        ("site=paris", True),
        ("site==paris", True),
        ("site=oslo", False),
        ("site=Paris", False),
        ("site!=oslo", True),
        ("site!=paris", False),
        ("lens!=wide", True),  # also met by a device without the label
        ("lens=wide", False),
        ("site", True),
        ("lens", False),
        ("!lens", True),
        ("!site", False),
        ("site=paris, hw!=pi4 ,!lens", True),
        ("site=paris,hw=pi4", False),
        ("rack.row=a-1/2:3+4", True),
        ("site=paris,site=oslo", False),
    ],
)
def test_selectors(text: str, matches: bool) -> None:
    assert Selector(text).matches(LABELS) is matches


@pytest.mark.parametrize(
    "text",
    [",", "site=paris,", "=x", "!site=paris", "!site!=paris", "a b", "site=a b", "Site=x", "!!a", "a=b=c", "a>1", "é=1"]
    + ["site=paris\n", "site=\0"],
)
def test_selectors_that_cannot_be_read(text: str) -> None:
    if text == "site=paris\n":
        assert Selector(text).matches(LABELS)  # blanks around are no matter
        return
    with pytest.raises(UsageError, match=r"--where: cannot read .*key=value") as caught:
        Selector(text)
    assert "\n" not in str(caught.value)


keys = st.from_regex(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?", fullmatch=True)
values = st.from_regex(r"[A-Za-z0-9_./:+-]{1,63}", fullmatch=True)


@given(keys, values, values)
def test_every_label_that_a_device_may_have_can_be_selected(key: str, value: str, other: str) -> None:
    if key != "timezone":
        check_label(key, value)
    assert Selector(f"{key}={value}").matches({key: value})
    assert Selector(f"{key}={value}").matches({key: other}) is (value == other)
    assert Selector(f"{key}!={value}").matches({key: other}) is (value != other)
    assert Selector(f"!{key}").matches({})
    assert not Selector(f"!{key}").matches({key: value})


@given(st.text(max_size=30))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        Selector(text).matches(LABELS)


def device(name: str, retired: float | None = None, **labels: str) -> Device:
    return Device(device_id=name, labels=labels, retired_at=retired)


DEVICES = [device("b", site="paris"), device("a", site="paris"), device("c"), device("old", 1.0, site="paris")]


def names(target: Target) -> list[str]:
    return [d.device_id for d in target.choose("yard", DEVICES)]


def test_who_is_meant() -> None:
    assert names(Target()) == ["a", "b", "c"]
    assert names(Target(where="site=paris")) == ["a", "b"]
    assert names(Target(devices=("c", "a", "a"))) == ["a", "c"]
    assert names(Target(devices=("c", "a"), where="site")) == ["a"]
    assert names(Target(where="site=mars")) == []


@pytest.mark.parametrize(("name", "hint"), [("old", ""), ("aa", r": did you mean 'a'\?"), ("zzzz", "")])
def test_named_devices_must_be_there(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"there is no device '{name}' in fleet 'yard'{hint}"):
        names(Target(devices=(name,)))


@pytest.mark.parametrize("make", [lambda: Target(), lambda: Target(where="site"), lambda: Target(devices=("a", "c"))])
def test_matches_and_choose_agree(make: Callable[[], Target]) -> None:
    target = make()
    assert sorted(d.device_id for d in DEVICES if target.matches(d)) == names(target)
