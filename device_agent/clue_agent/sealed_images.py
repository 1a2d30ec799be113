"""The samples of a vault as a model of a given spec wants them (torch); decrypted one at a time, in memory."""

import io
from collections.abc import Collection, Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clue.data.folder import read_image
from clue.errors import DataError
from clue.spec import ModelSpec
from clue_agent.errors import SealError
from clue_agent.retention import Part
from clue_agent.vault import Item, Vault


class SealedImages(Dataset[tuple[Tensor, int]]):
    """One part ("forget" or "holdout") of some classes; labels are the model's class indices.

    An item is a tensor (3, H, W), float32, resized to the spec's input size and normalised, as
    :class:`clue.data.folder.ImageFolder` gives it. Which samples there are is settled here, once: see
    :meth:`Vault.hold`. Classes that the model lacks are left out.

    Indexing raises DataError with the sample's id if it is damaged or was erased meanwhile.
    """

    def __init__(self, vault: Vault, spec: ModelSpec, names: Iterable[str], part: Part) -> None:
        self._vault = vault
        self._spec = spec
        self._mean = torch.tensor(spec.mean).view(3, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1)
        self._items = [
            (item, spec.class_index(name)) for name in names if name in spec.classes for item in vault.items(name, part)
        ]

    @property
    def items(self) -> list[Item]:
        """The samples, in the order of the tensors."""
        return [item for item, _ in self._items]

    @property
    def labels(self) -> list[int]:
        """The class index of each item."""
        return [label for _, label in self._items]

    def without(self, labels: Collection[int]) -> "SealedImages":
        """The same samples less those of the given class indices."""
        rest = SealedImages(self._vault, self._spec, (), "forget")
        rest._items = [pair for pair in self._items if pair[1] not in labels]
        return rest

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item, label = self._items[index]
        try:
            image = read_image(io.BytesIO(self._vault.read(item)), self._spec.input_size)
        except SealError as error:
            raise DataError(f"sample {item.id} of {item.name!r} cannot be read: {error}") from None
        except DataError:
            raise DataError(f"sample {item.id} of {item.name!r} is not a whole image") from None
        return (image - self._mean) / self._std, label
