"""Who is acting: the name of the token behind the operator call that this thread is working on.

Every event recorded meanwhile carries it, so no handler can forget to say who did something.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_name: ContextVar[str] = ContextVar("actor", default="")


def current() -> str:
    """Name of the caller's token; empty outside an operator call, where the coordinator itself acts."""
    return _name.get()


@contextmanager
def acting(name: str) -> Iterator[None]:
    """Act as ``name`` in this thread until the block ends."""
    before = _name.set(name)
    try:
        yield
    finally:
        _name.reset(before)
