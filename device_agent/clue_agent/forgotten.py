"""What this device has forgotten: kept for ever, and applied to every base model that comes later.

``forgotten.json`` holds one entry a class: who asked, when, and what was measured then. The class's
images are gone, so the measurement cannot be made again.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from clue_agent.errors import AgentError
from clue_protocol.files import write_atomic


@dataclass(frozen=True)
class Forgotten:
    """One class. ``at`` is in seconds since 1970; UA as counts on the holdout of that day."""

    name: str
    request_id: str
    at: float
    method: str
    ua_correct: int
    ua_samples: int


class ForgottenList:
    """The list in ``path``; an absent file is an empty list."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> dict[str, Forgotten]:
        """All entries by class name; AgentError if the file is damaged: it must never be taken for empty."""
        try:
            raw = json.loads(self._path.read_bytes())
            return {item["name"]: Forgotten(**item) for item in raw}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AgentError(f"cannot read {self._path}, the list of forgotten classes: {error}") from None

    def add(self, entry: Forgotten) -> None:
        """Add a class, durably; the first entry of a class stands."""
        entries = self.entries()
        if entry.name not in entries:
            entries[entry.name] = entry
            text = json.dumps([asdict(item) for item in entries.values()], indent=2)
            write_atomic(self._path, text.encode(), mode=0o600)
