"""What checkpoints cost, and what resuming saves: ResNet-20 on CIFAR-10, class bird, one thread.

Every method forgets 1,500 images three times: without checkpoints, with them, and resumed from the one nearest to
half way. CLUE_DATA_DIR must hold ``cifar10-imagefolder.zip`` and ``resnet20-cifar10.safetensors``.
The seconds of a save are those of collecting, encoding and a file with fsync in --folder; a run has one every ten
seconds, so their share of a run is a tenth of that.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import clue
from clue.architectures import build_model
from clue.bundle import load_weights
from clue.data import ImageFolder, image_folder
from clue.data.cifar10 import CLASSES, cifar10
from clue.methods._resumption import Resumption

METHODS = ("clue_plus", "clue", "boundary_shrinking")
CLASS = "bird"
EVERY_SECONDS = 10.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Watched(clue.FileCheckpoint):
    """Leaves a second name for every checkpoint, so that a later run can go on from any of them."""

    def save(self, data: bytes) -> None:
        super().save(data)
        Path(self.path).with_name(f"saved-{time.monotonic_ns()}").hardlink_to(self.path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is written; the default is the temporary folder"
    )
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--every-seconds", type=float, default=1.0, help="between saves, while measuring")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = cifar10()
        source.write(Path(folder) / "images", "train", CLASS, 0, options.images)
        spec = clue.ModelSpec("resnet20", CLASSES, mean=MEAN, std=STD)
        model = build_model(spec)
        load_weights(model, source.archive.with_name("resnet20-cifar10.safetensors"))
        data = image_folder(Path(folder) / "images", spec, only=CLASS)
        # The first run of a process pays for what torch loads late.
        clue.forget(model.eval(), data, spec.class_index(CLASS), "delete", hyperparameters={"epochs": 1})
        path = Path(folder) / "checkpoint"
        runs = [measure(model, data, method, path, options.every_seconds) for method in options.methods.split(",")]
    options.json.write_text(json.dumps({"images": options.images, "runs": runs}, indent=2) + "\n", encoding="utf-8")
    Console().print(table(runs))


def measure(model: nn.Module, data: ImageFolder, method: str, path: Path, every: float) -> dict[str, Any]:
    index = CLASSES.index(CLASS)
    plain = clue.forget(model, data, index, method)
    checkpoint = Watched(path, every)
    with Stopwatch("save") as saves:
        watched = clue.forget(model, data, index, method, checkpoint=checkpoint)
    saved = sorted(path.parent.glob("saved-*"))
    half = saved[len(saved) // 2].read_bytes()
    for old in saved:
        old.unlink()
    clue.FileCheckpoint(path).save(half)
    with Stopwatch("restore") as restores:
        resumed = clue.forget(model, data, index, method, checkpoint=clue.FileCheckpoint(path, 1e9))
    assert same(plain.model, watched.model)
    assert same(plain.model, resumed.model)
    return {
        "method": method,
        "seconds": plain.report.seconds,
        "seconds_with_checkpoints": watched.report.seconds,
        "peak_memory_bytes": plain.report.peak_memory_bytes,
        "peak_memory_bytes_with_checkpoints": watched.report.peak_memory_bytes,
        "saves": len(saves.seconds),
        "save_seconds": mean(saves.seconds),
        "checkpoint_bytes": len(half),
        "resumed_at": resumed.report.resumed_at,
        "seconds_resumed": resumed.report.seconds,
        "seconds_before_resuming": restores.ended[-1] - restores.started,
    }


class Stopwatch:
    """Times a method of Resumption while the block runs."""

    def __init__(self, name: str) -> None:
        self.name, self.seconds, self.ended, self.started = name, list[float](), list[float](), 0.0

    def __enter__(self) -> "Stopwatch":
        self.original = original = getattr(Resumption, self.name)

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = original(*arguments)
            self.ended.append(time.perf_counter())
            self.seconds.append(self.ended[-1] - started)
            return result

        setattr(Resumption, self.name, timed)
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        setattr(Resumption, self.name, self.original)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def table(runs: list[dict[str, Any]]) -> Table:
    columns = (
        "method",
        "run s",
        "checkpoint KiB",
        "save ms",
        "share %",
        "peak MiB, with",
        "resumed at",
        "s, until it goes on",
    )
    out = Table(*columns, header_style="bold", title=f"share: one save every {EVERY_SECONDS:.0f} s")
    for run in runs:
        out.add_row(
            run["method"],
            f"{run['seconds']:.1f}",
            f"{run['checkpoint_bytes'] / 1024:.0f}",
            f"{1000 * run['save_seconds']:.1f}",
            f"{100 * run['save_seconds'] / EVERY_SECONDS:.2f}",
            f"{run['peak_memory_bytes'] / 2**20:.0f}, {run['peak_memory_bytes_with_checkpoints'] / 2**20:.0f}",
            f"{100 * run['resumed_at']:.0f} %",
            f"{run['seconds_resumed']:.1f}, {run['seconds_before_resuming']:.1f}",
        )
    return out


if __name__ == "__main__":
    main()
