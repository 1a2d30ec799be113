"""Views of forget images that clue_plus keeps: two each in small sets, one each beyond, every image in every pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clue.methods import _sources
from clue.methods._sources import ForgetActivations


class Job:
    """As much of a ForgetJob as is asked for."""

    def __init__(self, images, batch):
        self._images, self._batch = images, batch
        self.samples = len(images)
        self.student = torch.nn.Linear(1, 1)
        self.generator = torch.Generator().manual_seed(0)

    def batches(self):
        return iter(self._images.split(self._batch))


class Whole:
    """A cut before the first layer: activations are the images."""

    def activations(self, images):
        return images


def numbered(count):
    """Image i holds 2 i + 1 on its left and 2 i + 2 on its right."""
    return torch.stack([torch.tensor([2.0 * i + 1, 2.0 * i + 2]).expand(1, 1, 2) for i in range(count)])


def opinion(images):
    return images.amax((1, 2, 3))[:, None]


@pytest.mark.parametrize("room", [64 * 2**20, 0])
@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 90), batch=st.integers(1, 40), two=st.integers(0, 80), size=st.integers(1, 40))
def test_every_image_comes_once_in_each_pass_with_its_own_opinion(room, count, batch, two, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sources, "_TWO_VIEWS", two)
        patch.setattr(_sources, "_MOST_BYTES", room)
        forget = ForgetActivations(Job(numbered(count), batch), Whole(), opinion)
        for _ in range(2):
            seen = []
            for images, weights in forget.pieces(size):
                assert len(images) == len(weights) <= max(size, 1)
                assert torch.equal(opinion(images.float()), weights.float())
                seen += (weights.flatten() / 2 - 1).tolist()
            assert sorted(seen) == list(range(count))


def test_small_sets_are_seen_from_both_sides_and_large_ones_half_mirrored():
    forget = ForgetActivations(Job(numbered(600), 64), Whole(), opinion)
    sides = {index: set() for index in range(600)}
    for _ in range(12):
        for images, weights in forget.pieces(32):
            for image, weight in zip(images, weights, strict=True):
                sides[int(weight) // 2 - 1].add(bool(image[0, 0, 0] > image[0, 0, 1]))
    assert all(sides[index] == {False, True} for index in range(512))
    assert all(sides[index] == {index % 2 == 1} for index in range(544, 600))
