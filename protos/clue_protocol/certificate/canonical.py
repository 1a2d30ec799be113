"""JSON in one canonical form: sorted keys, no spaces, ASCII. Whatever is written otherwise is refused.

A reader that compares the bytes with their re-encoding sees every change that a parser would overlook.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from clue_protocol.certificate.errors import CertificateFormError

Check = Callable[[object], bool]


def dump(data: object) -> bytes:
    """The bytes of ``data``, without a line end."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def load(data: bytes, what: str) -> Any:
    """Parse; CertificateFormError unless ``data`` is JSON. The caller compares what it read with ``data``."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise CertificateFormError(f"{what} is not JSON") from None


def fields(data: object, what: str, checks: Mapping[str, Check]) -> dict[str, Any]:
    """``data`` if it is an object with exactly these fields, each as its check wants; else CertificateFormError."""
    if not isinstance(data, dict):
        refuse(f"{what} is not an object")
    for name in sorted(set(data) | set(checks)):
        if name not in checks:
            refuse(f"{what} has the unknown field {name[:40]!r}")
        if name not in data:
            refuse(f"{what} lacks {name}")
        if not checks[name](data[name]):
            refuse(f"{name} of {what} is not what it must be")
    return data


def refuse(problem: str) -> NoReturn:
    """CertificateFormError."""
    raise CertificateFormError(problem)


def is_text(value: object) -> bool:
    """Text."""
    return isinstance(value, str)


def is_count(value: object) -> bool:
    """A whole number from 0; true is none."""
    return type(value) is int and 0 <= value < 1 << 63


def is_list(value: object) -> bool:
    """A list."""
    return isinstance(value, list)


def is_object(value: object) -> bool:
    """An object."""
    return isinstance(value, dict)


def is_form(form: str) -> Check:
    """Exactly this name of a format."""
    return lambda value: value == form
