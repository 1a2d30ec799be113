"""A process that swaps two models of an agent's home to and fro, as the agent does.

``live_writer.py HOME FIRST SECOND SWAPS``
"""

import hashlib
import itertools
import os
import sys
from pathlib import Path

from clue.spec import SPEC_FILE, WEIGHTS_FILE
from clue_agent.sealed import KeyRing
from clue_agent.store import CANDIDATE, ModelStore


def store_of(home: Path) -> ModelStore:
    return ModelStore(home / "model", KeyRing(home / "keys"))


def swap(store: ModelStore, bundle: Path, calibration: dict[str, object] | None = None) -> str:
    """Put a bundle to use; the slot of the old one is erased. Returns the digest."""
    text = (bundle / SPEC_FILE).read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    store.write(CANDIDATE, text, (bundle / WEIGHTS_FILE).read_bytes(), calibration)
    if not store.promote(digest):
        raise RuntimeError("the store did not take the model")
    store.erase(store.other_slot())
    return digest


def main() -> None:
    home, first, second, swaps = sys.argv[1:]
    store = store_of(Path(home))
    # No power fails here, and the more swaps a second the harder for the readers.
    os.fsync = lambda _descriptor: None
    for bundle in itertools.islice(itertools.cycle([Path(second), Path(first)]), int(swaps)):
        swap(store, bundle)


if __name__ == "__main__":
    main()
