"""Replaying the last part of a network from activations: exact, whatever the architecture; or not at all."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from clue.architectures import build_model
from clue.methods._replay import Cut
from clue.spec import ModelSpec

CLASSES = ("a", "b", "c")


def resnet20():
    model = build_model(ModelSpec("resnet20", CLASSES))
    return model, list(model.layer3[2].parameters()), torch.randn(5, 3, 32, 32)


def small_vit():
    model = build_model(ModelSpec("small_vit", CLASSES))
    # A ViT starts with a head of zeros, whose answers are equal whatever comes in.
    nn.init.normal_(model.heads.head.weight)
    return model, list(model.encoder.layers[-1].parameters()), torch.randn(5, 3, 32, 32)


def resnet18():
    model = build_model(ModelSpec("torchvision:resnet18", CLASSES, input_size=(64, 64)))
    return model, list(model.layer4.parameters()), torch.randn(5, 3, 64, 64)


def mobilenet():
    model = build_model(ModelSpec("torchvision:mobilenet_v3_small", CLASSES, input_size=(64, 64)))
    return model, list(model.features[-1].parameters()), torch.randn(5, 3, 64, 64)


class Bypass(nn.Module):
    """The last part sees the image itself, so that no cut holds."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.last(self.first(x) + x).mean((2, 3)))


def reseed(make):
    torch.manual_seed(0)
    model, free, images = make()
    # In double precision, so that what is equal stays so whatever order a processor's kernels add in.
    return model.double().eval(), free, images.double()


@pytest.mark.parametrize(
    ("make", "at"),
    [
        (resnet20, "layer3.1"),
        (small_vit, "encoder.layers.encoder_layer_2"),
        (resnet18, "layer3"),
        (mobilenet, "features.11"),
    ],
)
def test_the_replayed_network_gives_the_same_logits_and_gradients(make, at):
    model, free, images = reseed(make)
    with torch.no_grad():
        whole = model(images)
    cut = Cut(model, free, images)
    assert cut.module_name == at
    activations = cut.activations(images)
    with cut.replaying() as enter:
        logits = model(enter(activations))
    assert torch.allclose(logits, whole, atol=1e-8)
    replayed = torch.autograd.grad(logits.square().sum(), free, allow_unused=True)
    real = torch.autograd.grad(model(images).square().sum(), free, allow_unused=True)
    for one, other in zip(replayed, real, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-8)


def test_the_model_is_itself_again_after_the_block_and_after_an_error():
    model, free, images = reseed(resnet20)
    whole = model(images)
    cut = Cut(model, free, images)
    with pytest.raises(KeyError), cut.replaying():
        raise KeyError
    assert torch.equal(model(images), whole)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_old_values_can_be_replayed_beside_new_ones():
    model, free, images = reseed(resnet20)
    cut = Cut(model, free, images)
    activations = cut.activations(images)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    old = {names[id(parameter)]: parameter.detach().clone() for parameter in free}
    before = model(images)
    with torch.no_grad():
        free[0].mul_(2)
    with cut.replaying() as enter:
        assert torch.allclose(functional_call(model, old, (enter(activations),)), before, atol=1e-8)
        assert not torch.allclose(model(enter(activations)), before, atol=1e-3)


def test_a_connection_around_every_cut_is_noticed():
    model, _, images = reseed(lambda: (Bypass(), None, torch.randn(4, 3, 8, 8)))
    cut = Cut(model, list(model.last.parameters()), images)
    assert cut.module_name is None
    activations = cut.activations(images)
    assert torch.equal(activations, images)
    with cut.replaying() as enter:
        assert torch.equal(model(enter(activations)), model(images))


def test_nothing_is_cut_where_the_first_layer_is_free():
    model, _, images = reseed(resnet20)
    assert Cut(model, list(model.parameters()), images).module_name is None
