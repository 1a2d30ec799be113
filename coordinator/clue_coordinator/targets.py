"""Which devices of a fleet a request is for: named ones, those whose labels match, or all."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from clue_coordinator.errors import UsageError
from clue_coordinator.models import Device

_CONDITION = re.compile(r"(?P<not>!)?(?P<key>[a-z0-9][a-z0-9_.-]*)(?:(?P<op>!=|==|=)(?P<value>[\w./:+-]*))?")
# That a request may name one by one.
MAX_DEVICES = 10_000


class Selector:
    """A label selector: comma-separated conditions that must all hold.

    ``key=value``, ``key!=value`` (also met by a device without the label), ``key``, ``!key``.
    The empty selector matches every device.
    """

    def __init__(self, text: str) -> None:
        """UsageError names the condition that cannot be read."""
        self.text = text.strip()
        self._conditions = [_condition(part.strip()) for part in self.text.split(",")] if self.text else []

    def matches(self, labels: dict[str, str]) -> bool:
        """True if the labels meet every condition."""
        return all(
            (key in labels if value is None else labels.get(key) == value) == wanted
            for key, value, wanted in self._conditions
        )


def _condition(text: str) -> tuple[str, str | None, bool]:
    found = _CONDITION.fullmatch(text)
    if found is None or (found["not"] and found["op"]):
        raise UsageError(
            f"--where: cannot read {text!r}: conditions are key=value, key!=value, key or !key, with commas between"
        )
    return found["key"], found["value"] if found["op"] else None, not found["not"] and found["op"] != "!="


class Target(BaseModel):
    """As kept with a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str = ""
    devices: Annotated[tuple[str, ...], Field(max_length=MAX_DEVICES)] = ()
    continuous: bool = False

    def matches(self, device: Device) -> bool:
        """True if a device of the request's fleet is meant."""
        if device.retired_at is not None or (self.devices and device.device_id not in self.devices):
            return False
        return Selector(self.where).matches(device.labels)

    def choose(self, fleet: str, devices: Iterable[Device]) -> list[Device]:
        """The devices of a fleet that are meant, by name.

        Raises:
            UsageError: a named device is not in the fleet, or the selector cannot be read.
        """
        selector = Selector(self.where)
        present = {device.device_id: device for device in devices if device.retired_at is None}
        for name in self.devices:
            if name not in present:
                near = get_close_matches(name, present, n=1)
                hint = f": did you mean '{near[0]}'?" if near else ""
                raise UsageError(f"there is no device '{name}' in fleet '{fleet}'{hint}")
        names = set(self.devices) or set(present)
        return [present[name] for name in sorted(names) if selector.matches(present[name].labels)]
