"""Where the deep path of ``clue_plus`` takes its two halves of a batch from.

Both give *activations* at the cut (:mod:`clue.methods._replay`), not images: the first part of the
network runs once for each image, or once a step where the activations would not fit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clue.methods._job import ForgetJob
from clue.methods._replay import Cut

Walk = Callable[[Iterator[Tensor]], Iterator[Tensor]]

# Activations that are kept; more forget images than fit are read and run anew in every pass.
_MOST_BYTES = 64 * 2**20
# A small forget set is doubled by its mirror images; beyond, an image has one view, every second one mirrored.
_TWO_VIEWS = 512
_BATCH = 32
_LARGEST_HALF = 6e4


@dataclass(frozen=True)
class Held:
    """Retain proxies and what the original says of them.

    Attributes:
        views: activations of the proxies and of their mirror images, each (M, ...).
        labels: the class that the original sees in each proxy, shape (M,).
        logits: of the first view, shape (M, K), absent classes removed.
        features: of the first view, shape (M, D).
    """

    views: tuple[Tensor, Tensor]
    labels: Tensor
    logits: Tensor
    features: Tensor

    def draw(self, count: int, most: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, plain activations, activations mixed with those of other proxies).

        Between the proxies lie the doubtful images, which proxies themselves are not: the model is
        sure of each. At most the share ``most`` of an activation comes from the other proxy.
        """
        device = self.labels.device
        rows = torch.randint(len(self.labels), (count,), generator=generator).to(device)
        others = torch.randint(len(self.labels), (count,), generator=generator).to(device)
        view = self.views[int(torch.randint(2, (1,), generator=generator))]
        plain = view[rows]
        share = most * torch.rand(count, generator=generator).to(plain)
        return rows, plain, torch.lerp(plain, view[others], share.view(-1, *[1] * (plain.ndim - 1)))


class ForgetActivations:
    """Activations of forget images, mirrored by chance, with the original's opinion of each.

    Args:
        job: the forget set.
        cut: where the network is cut.
        opinion: activations to weights over the classes, shape (N, K).
    """

    def __init__(self, job: ForgetJob, cut: Cut, opinion: Callable[[Tensor], Tensor]) -> None:
        self._job, self._cut, self._opinion = job, cut, opinion
        self._dtype = next(job.student.parameters()).dtype
        self._kept = self._keep()

    def pieces(self, size: int, walk: Walk = iter) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over the forget set in pieces of at most ``size``: activations (N, ...), weights (N, K).

        ``walk`` is handed what is drawn at the start of a pass, images or their indices, and may leave out the first.
        """
        job = self._job
        if self._kept is None:
            for piece in walk(piece for images in job.batches() for piece in images.split(size)):
                mirrored = bool(torch.randint(2, (1,), generator=job.generator))
                activations = self._cut.activations(piece.flip(3) if mirrored else piece)
                yield activations, self._opinion(activations)
            return
        rows, weights = self._kept
        second = len(rows) - job.samples
        for piece in walk(self._order(size)):
            side = int(torch.randint(2, (1,), generator=job.generator))
            chosen = piece + (piece < second) * side * job.samples
            activations = torch.stack([rows[index] for index in chosen.tolist()]).to(self._dtype)
            yield activations, weights[chosen.to(weights.device)]

    def _order(self, size: int) -> Iterator[Tensor]:
        yield from torch.randperm(self._job.samples, generator=self._job.generator).split(size)

    def _keep(self) -> tuple[list[Tensor], Tensor] | None:
        """A row of activations for each image, then second views of the first ones, and opinions; None if too many.

        Rows, not one tensor: to put it together would take the memory twice.
        """
        first: list[Tensor] = []
        second: list[Tensor] = []
        used = count = 0
        for images in self._job.batches():
            for piece in images.split(_BATCH):
                if used > _MOST_BYTES:
                    break  # read on: the job counts the images
                odd = (torch.arange(count, count + len(piece), device=piece.device) % 2 == 1).view(-1, 1, 1, 1)
                mirrored, count = piece.flip(3), count + len(piece)
                first.append(_packed(self._cut.activations(torch.where(odd, mirrored, piece))))
                used += first[-1].nbytes
                if count <= _TWO_VIEWS:
                    second.append(_packed(self._cut.activations(torch.where(odd, piece, mirrored))))
                    used += second[-1].nbytes
        if used > _MOST_BYTES:
            return None
        kept = first + second
        weights = torch.cat([self._opinion(piece.to(self._dtype)) for piece in kept])
        return [row for piece in kept for row in piece], weights


def _packed(activations: Tensor) -> Tensor:
    """Half the bytes, where half precision holds the values; a mirror image changes far more than it rounds off."""
    small = activations.dtype == torch.float32 and float(activations.abs().max()) < _LARGEST_HALF
    return activations.half() if small else activations
