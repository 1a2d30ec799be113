"""Fixtures of the coordinator's tests."""

from collections.abc import Callable
from pathlib import Path

import databases
import pytest


@pytest.fixture(params=databases.KINDS)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes the URL of an empty database; a test that asks for it runs once on each kind."""
    kind = str(request.param)
    if kind == "postgresql":
        databases.server()
    return lambda: databases.new_url(kind, tmp_path)
