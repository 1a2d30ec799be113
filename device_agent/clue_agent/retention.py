"""How many samples are kept, and which have to go when there are more: a pure function.

A sample's id is a keyed hash of its content. Of each part (forget, holdout) of a class the samples
with the lowest ids stay, "bottom-k": that is a uniform random sample of all distinct images ever
offered, whatever their order and however often each was offered. Where all classes together take too
much room, the largest class gives up its highest ids.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Part = Literal["forget", "holdout"]
PARTS: tuple[Part, Part] = ("forget", "holdout")
# Size in bytes of each sealed file, by id.
Shelf = dict[Part, dict[str, int]]

_BLOCK = 4096


class VaultLimits(BaseModel):
    """What is kept. The share must stay the same while the vault holds samples.

    Attributes:
        max_per_class: samples of a class, both parts together.
        max_bytes: room that all samples take on the card, whole blocks and key files included.
        holdout_share: of the distinct images of a class, about this share only ever measures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_per_class: Annotated[int, Field(ge=10)] = 1500
    max_bytes: Annotated[int, Field(ge=1 << 20)] = 256 << 20
    holdout_share: Annotated[float, Field(ge=0.0, le=0.5, allow_inf_nan=False)] = 0.2

    def quota(self, part: Part) -> int:
        """The most samples of one part of a class."""
        holdout = round(self.max_per_class * self.holdout_share)
        return holdout if part == "holdout" else self.max_per_class - holdout


def room(size: int) -> int:
    """Bytes that a sealed file of ``size`` bytes takes on the card: whole blocks, and one for its key."""
    return (-(-size // _BLOCK) + 1) * _BLOCK


def surplus(shelves: Mapping[str, Shelf], limits: VaultLimits) -> list[tuple[str, Part, str]]:
    """(class, part, id) of the samples that have to go for the rest to be within the limits."""
    gone: list[tuple[str, Part, str]] = []
    for name, shelf in shelves.items():
        for part in PARTS:
            excess = len(shelf[part]) - limits.quota(part)
            if excess > 0:
                gone += [(name, part, identity) for identity in sorted(shelf[part], reverse=True)[:excess]]
    return gone + _too_large(shelves, limits, frozenset(gone))


def _too_large(
    shelves: Mapping[str, Shelf], limits: VaultLimits, gone: frozenset[tuple[str, Part, str]]
) -> list[tuple[str, Part, str]]:
    taken: dict[tuple[str, Part], int] = {
        (name, part): sum(room(size) for identity, size in shelf[part].items() if (name, part, identity) not in gone)
        for name, shelf in shelves.items()
        for part in PARTS
    }
    total = sum(taken.values())
    # Sorted when first needed: mostly it is one part of one class.
    queues: dict[tuple[str, Part], list[str]] = {}
    more: list[tuple[str, Part, str]] = []
    while total > limits.max_bytes:
        largest = max(shelves, key=lambda name: (taken[name, "forget"] + taken[name, "holdout"], name))
        forget, holdout = taken[largest, "forget"], taken[largest, "holdout"]
        part: Part = "holdout" if holdout > limits.holdout_share * (forget + holdout) or not forget else "forget"
        queue = queues.get((largest, part))
        if queue is None:
            left = (i for i in shelves[largest][part] if (largest, part, i) not in gone)
            queue = queues[largest, part] = sorted(left)
        identity = queue.pop()
        more.append((largest, part, identity))
        freed = room(shelves[largest][part][identity])
        taken[largest, part] -= freed
        total -= freed
    return more
