"""Fixtures of the coordinator's and the agent's tests."""

from collections.abc import Callable
from pathlib import Path

import databases
import pytest
from agent_home import device, worker

__all__ = ["device", "new_url", "worker"]


@pytest.fixture(params=databases.KINDS)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes the URL of an empty database; a test that asks for it runs once on each kind."""
    kind = str(request.param)
    if kind == "postgresql":
        databases.server()
    return lambda: databases.new_url(kind, tmp_path)
