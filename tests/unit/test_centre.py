"""The mean feature of biased proxies, set right by what batch-norm remembers of the training images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clue.methods._centre import centre_shift, sample


class Net(nn.Module):
    """Convolution, batch-norm, pooled features, a head of three classes."""

    def __init__(self, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12, momentum=None) if norm else nn.Identity()
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.answer(x)[0]

    def answer(self, x):
        features = F.relu(self.bn(self.conv(x))).mean((2, 3))
        return self.head(features), features


def images_of(label, count, generator):
    """Noise with a colour of its own for each class."""
    colour = torch.zeros(3)
    colour[label] = 1.5
    return torch.randn(count, 3, 6, 6, generator=generator) + colour.view(1, 3, 1, 1)


@pytest.fixture
def net():
    torch.manual_seed(1)
    net = Net()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # The statistics of all training images, as training leaves them.
        net.train()(torch.cat([images_of(label, 400, generator) for label in range(3)]))
    return net.eval()


def drawn(net, trace):
    """Samples of biased proxies of classes 1 and 2, of forget images, and the true mean feature of the two."""
    generator = torch.Generator().manual_seed(2)
    real = torch.cat([images_of(label, 300, generator) for label in (1, 2)])
    forget = images_of(0, 100, generator)
    labels = torch.tensor([1] * 70 + [2] * 30)
    proxies = torch.cat([images_of(1, 70, generator), images_of(2, 30, generator)]) + trace
    with torch.no_grad():
        truth = net.answer(real)[1].mean(0)
    one_hot = F.one_hot(labels, 3).float()
    samples = (sample(net, net.answer, iter(images.split(32))) for images in (proxies, forget))
    return *samples, one_hot, truth


@pytest.mark.parametrize("trace", [torch.tensor([0.3, 0.0, 0.0]), torch.tensor([0.0, -0.3, -0.3])])
def test_half_of_the_error_is_taken_back(net, trace):
    proxies, forget, one_hot, truth = drawn(net, trace.view(1, 3, 1, 1))
    means = (one_hot.T @ proxies.features)[1:] / one_hot.sum(0)[1:, None]
    error = truth - means.mean(0)
    shift = centre_shift(proxies, one_hot, forget)
    assert F.cosine_similarity(shift, error, 0) > 0.9
    assert 0.3 < shift.norm() / error.norm() < 0.7


def test_proxies_without_an_error_stay_where_they_are(net):
    proxies, forget, one_hot, _ = drawn(net, 0.0)
    biased = drawn(net, 0.3)[0]
    assert centre_shift(proxies, one_hot, forget).norm() < 0.2 * centre_shift(biased, one_hot, forget).norm()


def test_statistics_of_other_images_carry_it_only_so_far(net):
    net.bn.running_mean += 100
    proxies, forget, one_hot, _ = drawn(net, 0.0)
    means = (one_hot.T @ proxies.features)[1:] / one_hot.sum(0)[1:, None]
    distance = (means - means.mean(0)).norm(dim=1).mean()
    assert centre_shift(proxies, one_hot, forget).norm() <= 0.2001 * distance


def test_a_network_without_batch_norm_has_nothing_to_say():
    net = Net(norm=False).eval()
    assert sample(net, net.answer, iter([torch.randn(4, 3, 6, 6)])) is None
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_batch_norm_of_vectors():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    found = sample(net, lambda x: (net(x), net(x)), iter([torch.randn(7, 5), torch.randn(2, 5)]))
    assert found.statistics.shape[0] == found.features.shape[0] == 9
    assert torch.isfinite(found.statistics).all()
