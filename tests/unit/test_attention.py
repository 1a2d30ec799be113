"""Attention maps: equal to what the model itself computes, and a picture of them from the shell."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import clue
from clue.architectures import build_model
from clue.attention import (
    AttentionError,
    attention_change,
    attention_layers,
    attention_maps,
    map_correlation,
    map_cosine,
    rollout,
)
from clue.cli import app
from clue.cli._run import run as run_cli
from clue.errors import DataError

CLASSES = ("red", "green", "blue", "stripes")
SIDE, PATCH = 8, 4


def transformer(layers: int = 2, heads: int = 2, seed: int = 0) -> nn.Module:
    """A random transformer of 2 x 2 patches; an even number of heads takes torch's fused kernels."""
    from clue._torchvision import torchvision

    torch.manual_seed(seed)
    model = torchvision().models.VisionTransformer(SIDE, PATCH, layers, heads, 16, 32, num_classes=4)
    for block in model.encoder.layers:  # torch starts near even attention, which would hide mistakes
        nn.init.normal_(block.self_attention.in_proj_weight)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def images(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn((count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 2])
def test_rows_are_shares(heads):
    layers = attention_layers(transformer(heads=heads), images())
    assert [tuple(layer.shape) for layer in layers] == [(3, 5, 5)] * 2
    for tokens in (*layers, rollout(layers)):
        assert bool((tokens >= 0).all())
        assert torch.allclose(tokens.sum(2), torch.ones(3, 5), atol=1e-5)
    for kind in ("rollout", "last"):
        found = attention_maps(transformer(heads=heads), images(), kind)
        assert found.shape == (3, 2, 2)
        assert torch.allclose(found.sum((1, 2)), torch.ones(3), atol=1e-5)


def by_hand(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) of the first layer, mean over heads, from the weights alone."""
    block = model.encoder.layers[0]
    tokens = model.conv_proj(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(x), -1, -1), tokens], dim=1) + model.encoder.pos_embedding
    normed = block.ln_1(tokens)
    attention = block.self_attention
    joint = normed @ attention.in_proj_weight.T + attention.in_proj_bias
    query, key, _ = (part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=2))
    return (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(3).mean(1)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_one_layer_by_hand(heads):
    model, x = transformer(layers=1, heads=heads), images()
    with torch.no_grad():
        attention = by_hand(model, x)
    assert float(attention.std()) > 0.05  # not even: the comparison means something
    assert torch.allclose(attention_layers(model, x)[0], attention, atol=1e-5)
    # Rollout of one layer: half the attention, half the token itself, whose own share is left out of the map.
    token = (attention + torch.eye(5)) / 2
    expected = (token[:, 0, 1:] / token[:, 0, 1:].sum(1, keepdim=True)).view(3, 2, 2)
    assert torch.allclose(attention_maps(model, x, "rollout"), expected, atol=1e-5)


def test_rollout_multiplies_the_last_layer_from_the_left():
    first, second = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    # B_1 = [[1, 0], [.5, .5]], B_2 = [[.5, .5], [0, 1]]
    assert rollout([first, second])[0].tolist() == [[0.75, 0.25], [0.5, 0.5]]


def test_logits_and_modes_stay_as_they_are():
    model, x = transformer(), images()
    with torch.no_grad():
        before = model(x)
    model.train()
    seen = []
    handle = model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    attention_maps(model, x)
    handle.remove()
    assert torch.equal(seen[0], before)
    assert model.training
    assert not any(block.self_attention._forward_hooks for block in model.encoder.layers)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), before)


def test_maps_do_not_depend_on_the_batch():
    model, x = transformer(), images(20)
    one_by_one = torch.cat([attention_maps(model, x[i : i + 1]) for i in range(20)])
    assert torch.allclose(attention_maps(model, x), one_by_one, atol=1e-5)


def test_half_precision():
    maps = attention_maps(transformer().bfloat16(), images().bfloat16())
    assert maps.dtype == torch.float32
    assert torch.allclose(maps.sum((1, 2)), torch.ones(3), atol=1e-5)


def test_alike_and_unlike():
    one = torch.tensor([[[0.7, 0.1], [0.1, 0.1]]])
    other = torch.tensor([[[0.1, 0.3], [0.3, 0.3]]])
    even = torch.full((1, 2, 2), 0.25)
    assert map_correlation(one, one).item() == pytest.approx(1.0)
    assert map_correlation(one, other).item() == pytest.approx(-1.0)
    assert map_correlation(even, even).item() == 1.0
    assert map_correlation(even, one).item() == pytest.approx(0.0, abs=1e-6)
    assert map_cosine(one, one).item() == pytest.approx(1.0)
    assert map_cosine(one, other).item() == pytest.approx(0.16 / math.sqrt(0.52 * 0.28))


def test_change_of_forget_and_retained_images():
    before = transformer()
    labels = torch.tensor([0, 1, 1, 2, 0])
    same = attention_change(before, before, TensorDataset(images(5), labels), 1)
    assert (same.forget_samples, same.retained_samples) == (2, 3)
    assert same.forget_correlation == pytest.approx(1.0, abs=1e-5)
    assert same.retained_cosine == pytest.approx(1.0, abs=1e-5)
    other = attention_change(before, transformer(seed=1), TensorDataset(images(5), labels), 1, "last")
    assert other.forget_correlation < 0.95
    none = attention_change(before, before, TensorDataset(images(1), torch.tensor([0])), 1)
    assert none.forget_samples == 0
    assert math.isnan(none.forget_correlation)


def test_what_has_no_attention(bundle):
    with pytest.raises(AttentionError, match="ResNet20 has no attention"):
        attention_maps(bundle.model, images())
    with pytest.raises(AttentionError, match="rollout, last"):
        attention_maps(transformer(), images(), "first")
    with pytest.raises(AttentionError, match="cannot take images"):
        attention_maps(transformer(), torch.zeros(1, 3, 16, 16))
    with pytest.raises(AttentionError, match="N >= 1"):
        attention_maps(transformer(), images()[:0])
    with pytest.raises(DataError, match="no image"):
        attention_change(transformer(), transformer(), TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)), 0)


# --- clue attention ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Two random transformers as bundles."""
    root = tmp_path_factory.mktemp("vit")
    spec = clue.ModelSpec("small_vit", CLASSES, (SIDE, SIDE))
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(spec)
        nn.init.normal_(model.heads.head.weight)
        clue.save_bundle(root / str(seed), model, spec)
    return root / "0", root / "1"


@pytest.fixture
def cli(capsys):
    pytest.importorskip("matplotlib")

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run_cli(app, ["attention", *map(str, arguments)])
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("kind", ["rollout", "last"])
def test_the_command_draws_and_measures(cli, folders, images_root, tmp_path, kind):
    picture, numbers = tmp_path / "a.png", tmp_path / "a.json"
    options = ("--class", "red", "--rows", 2, "--kind", kind, "--out", picture, "--json", numbers)
    status, out, err = cli(*folders, images_root / "test", *options)
    assert status == 0, err
    with Image.open(picture) as opened:
        assert opened.format == "PNG"
        assert min(opened.size) > 600
        assert len(np.unique(np.asarray(opened.convert("RGB")).reshape(-1, 3), axis=0)) > 500
    body = json.loads(numbers.read_text())
    assert body["kind"] == kind
    assert (body["forget_samples"], body["retained_samples"]) == (10, 30)
    assert -1 <= body["forget_correlation"] < 0.999
    assert "correlation" in out
    assert f"{body['retained_correlation']:.3f}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_the_class_alone_is_enough(cli, folders, images_root, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red").symlink_to(images_root / "test" / "red")
    status, out, err = cli(*folders, tmp_path / "images", "--class", "red", "--out", tmp_path / "a.png")
    assert status == 0, err
    assert "no images" in out


def test_wrong_usage_leaves_nothing(cli, folders, bundle_dir, images_root, tmp_path):
    before, after = folders
    out = tmp_path / "a.png"
    cases = [
        ((before, after, images_root / "test", "--class", "red", "--out", tmp_path / "a.jpg"), 2, ".png"),
        ((before, after, images_root / "test", "--class", "red", "--out", tmp_path / "no" / "a.png"), 2, "written"),
        ((before, after, images_root / "test", "--class", "red", "--out", out, "--kind", "x"), 2, "rollout or last"),
        ((before, after, images_root / "test", "--class", "rad", "--out", out), 2, "did you mean 'red'"),
        ((before, bundle_dir, images_root / "test", "--class", "red", "--out", out), 1, "architecture differs"),
        ((bundle_dir, bundle_dir, images_root / "test", "--class", "red", "--out", out), 1, "no attention to show"),
        ((before, after, tmp_path, "--class", "red", "--out", out), 1, "no .png"),
    ]
    for arguments, expected, said in cases:
        status, _, err = cli(*arguments)
        assert (status, err.count("\n")) == (expected, 1), err
        assert said in err
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_one_line_says_what_to_install(folders, images_root, tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; from clue.cli import main; main(sys.argv[1:])"
    arguments = ["attention", *folders, images_root / "test", "--class", "red", "--out", tmp_path / "a.png"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "clue: error: drawing needs matplotlib: pip install 'clue-unlearning[plots]'\n"
    assert list(tmp_path.iterdir()) == []
