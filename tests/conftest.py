"""Shared fixtures: four easy synthetic classes of 8 x 8 images and a ResNet-20 that knows them."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch.utils.data import TensorDataset

import clue
from clue.train import ImageCache, Recipe, train
from clue_protocol import net

torch.set_num_threads(1)
# The first example of a property pays for imports, and the machine may be busy: time is no property here.
# The same examples each time, so that a change is judged by what it changes; CLUE_TEST_RANDOM=1 draws new ones.
settings.register_profile(
    "clue", deadline=None, max_examples=60, derandomize=os.environ.get("CLUE_TEST_RANDOM", "") != "1"
)
settings.load_profile("clue")

# Two workers at once must not find the same port free: each chooses among its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
net.NOT_EPHEMERAL = net.NOT_EPHEMERAL[_WORKER::_WORKERS]

CLASSES = ("red", "green", "blue", "stripes")
RECIPE = Recipe(epochs=10, batch_size=16, peak_lr=0.05)


def draw(name: str, rng: np.random.Generator) -> np.ndarray:
    """One noisy 8 x 8 RGB image of a class."""
    pixels = np.full((8, 8, 3), 60.0)
    if name == "stripes":
        pixels[::2] = 220
    else:
        pixels[:, :, CLASSES.index(name)] = 220
    return np.clip(pixels + rng.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def images_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``root/{train,test}/<class>/N.png``: 20 and 10 images a class. Read-only by convention."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 10)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw(name, rng)).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def spec() -> clue.ModelSpec:
    return clue.ModelSpec("resnet20", CLASSES, (8, 8))


@pytest.fixture(scope="session")
def bundle_dir(images_root: Path, spec: clue.ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model as a bundle. Read-only by convention."""
    data = clue.data.image_folder(images_root / "train", spec)
    result = train(spec, data, recipe=RECIPE)
    folder = tmp_path_factory.mktemp("model")
    clue.save_bundle(folder, result.model, spec)
    return folder


@pytest.fixture
def bundle(bundle_dir: Path) -> clue.ModelBundle:
    """The trained model, a fresh copy for every test."""
    return clue.load_bundle(bundle_dir)


@pytest.fixture(scope="session")
def train_cache(images_root: Path, spec: clue.ModelSpec) -> ImageCache:
    return ImageCache.of(clue.data.image_folder(images_root / "train", spec), spec)


@pytest.fixture(scope="session")
def reds(train_cache: ImageCache) -> TensorDataset:
    """The 20 training images of class 0, normalised, with labels."""
    chosen = torch.nonzero(train_cache.labels == 0).flatten()
    return TensorDataset(*train_cache.batch(chosen))


def without_times(report: clue.ForgetReport) -> dict[str, object]:
    """The parts of a report that must not depend on the machine's mood."""
    measured = {"seconds", "cpu_seconds", "energy", "peak_memory_bytes"}
    return {key: value for key, value in dataclasses.asdict(report).items() if key not in measured}
