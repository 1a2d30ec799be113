"""What LiveModel costs an app: a call beside the bare model, and a hot swap as the frame loop sees it.

Weights are random: only time is measured. The swaps are made by another process through the agent's
store, and timed from the moment the link was switched. Writes JSON and prints a table.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import clue
from clue.architectures import build_model
from clue_agent import LiveModel
from clue_agent.sealed import KeyRing
from clue_agent.store import CANDIDATE, ModelStore

CLASSES = tuple(f"class-{index}" for index in range(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--architecture", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--writer", nargs=3, metavar=("HOME", "BUNDLES", "SWAPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        write(Path(options.writer[0]), Path(options.writer[1]), int(options.writer[2]))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home, bundles = prepare(Path(folder), options.architecture, options.size)
        result: dict[str, Any] = {
            "architecture": options.architecture,
            "input_size": options.size,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "model_bytes": (bundles / "0" / "model.safetensors").stat().st_size,
            "calls": calls(home, options.size, options.calls),
            "looks_seconds": looks(home),
            "swaps": [
                swaps(home, bundles, options.size, options.swaps, background=background, check_every=check_every)
                for background, check_every in ((True, 0.2), (True, 0.02), (False, 0.2))
            ],
        }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


def prepare(root: Path, architecture: str, size: int) -> tuple[Path, Path]:
    """A home, and two bundles that take turns; the second has forgotten a class."""
    spec = clue.ModelSpec(architecture, CLASSES, (size, size))
    for name, wanted in (("0", spec), ("1", spec.with_forgotten(CLASSES[3]))):
        clue.save_bundle(root / "bundles" / name, build_model(spec), wanted)
    store_of(root / "home").install(root / "bundles" / "0")
    return root / "home", root / "bundles"


def store_of(home: Path) -> ModelStore:
    return ModelStore(home / "model", KeyRing(home / "keys"))


# A call


def calls(home: Path, size: int, count: int) -> dict[str, dict[str, float]]:
    """Seconds of one call, one image each; the kinds take turns, so that a busy moment strikes them all."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    large = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with LiveModel(home) as live:
        loaded = live._loaded
        assert loaded is not None
        batch = loaded.batch([frame])
        model = loaded.model

        def bare() -> None:
            with torch.inference_mode():
                model(batch)

        kinds: dict[str, Callable[[], object]] = {
            "bare model(batch)": bare,
            "live(batch)": lambda: live(batch),
            "live.predict(frame)": lambda: live.predict(frame),
            "live.predict(640 x 480 frame)": lambda: live.predict(large),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for round_ in range(count + 10):
            for name, call in kinds.items():
                began = time.perf_counter()
                call()
                if round_ >= 10:
                    times[name].append(time.perf_counter() - began)
    return {name: summary(found) for name, found in times.items()}


def looks(home: Path) -> float:
    """Median seconds of a look at an unchanged store."""
    with LiveModel(home, check_every=3600) as live:
        found = []
        for _ in range(300):
            began = time.perf_counter()
            live.refresh()
            found.append(time.perf_counter() - began)
    return median(found)


# A swap


def swaps(home: Path, bundles: Path, size: int, count: int, *, background: bool, check_every: float) -> dict[str, Any]:
    """A frame loop without pause under ``count`` swaps: the delay until it answers by the new model, and its pauses."""
    frame = np.zeros((size, size, 3), np.uint8)
    ends: list[int] = []
    durations: list[float] = []
    digests: list[str] = []
    arguments = [sys.executable, __file__, "--writer", str(home), str(bundles), str(count)]
    with LiveModel(home, background=background, check_every=check_every) as live:
        writer = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        while writer.poll() is None:
            began = time.perf_counter()
            digests.append(live.predict(frame).model_digest)
            durations.append(time.perf_counter() - began)
            ends.append(time.time_ns())
    output, _ = writer.communicate()
    assert writer.returncode == 0
    switched = [(digest, int(at)) for digest, at in map(str.split, output.splitlines())]
    assert len(switched) == count
    delays, longest = [], []
    for digest, at in switched:
        first = next(
            i for i, (end, found) in enumerate(zip(ends, digests, strict=True)) if end > at and found == digest
        )
        delays.append((ends[first] - at) / 1e9)
        during = [taken for end, taken in zip(ends, durations, strict=True) if at < end <= ends[first] + 50_000_000]
        longest.append(max(during))
    return {
        "background": background,
        "check_every": check_every,
        "swaps": count,
        "frames": len(digests),
        "frame_seconds": summary(durations),
        "until_answered_seconds": summary(delays),
        "longest_frame_during_swap_seconds": summary(longest),
    }


def write(home: Path, bundles: Path, count: int) -> None:
    """The other process: swap as the agent does, and say when the link was switched."""
    store = store_of(home)
    for folder in turns(store, bundles, count):
        time.sleep(0.6)
        text = (folder / "model.json").read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        store.write(CANDIDATE, text, (folder / "model.safetensors").read_bytes())
        assert store.promote(digest)
        # A rename changes the link's own time stamp; the clock of the file system ticks every few milliseconds.
        print(digest, store.current.lstat().st_ctime_ns, flush=True)
        store.mirror()
    time.sleep(0.6)


def turns(store: ModelStore, bundles: Path, count: int) -> Iterator[Path]:
    """The bundle that is not in use, over and over."""
    digests = [hashlib.sha256((bundles / name / "model.json").read_bytes()).hexdigest() for name in "01"]
    current = digests.index(store.spec()[1])
    for number in range(1, count + 1):
        yield bundles / str((current + number) % 2)


# Showing


def summary(times: list[float]) -> dict[str, float]:
    """Median, 95th percentile and longest, in seconds."""
    return {"median": median(times), "p95": quantiles(times, n=20)[-1], "max": max(times)}


def show(result: dict[str, Any]) -> None:
    console = Console(width=110)
    console.print(
        f"{result['architecture']}, {result['input_size']} x {result['input_size']}, "
        f"{result['model_bytes'] / 1e6:.1f} MB; {result['machine']}"
    )
    table = Table("one image, one thread", "median ms", "p95 ms", "over bare, median ms", header_style="bold")
    bare = result["calls"]["bare model(batch)"]["median"]
    for name, found in result["calls"].items():
        table.add_row(name, *milliseconds(found["median"], found["p95"], found["median"] - bare))
    console.print(table)
    console.print(f"a look at the store: {1e6 * result['looks_seconds']:.0f} us")
    table = Table("swaps", "until answered, median ms", "max ms", "frame, median ms", "longest in a swap, median ms")
    for found in result["swaps"]:
        where = "background" if found["background"] else "calling thread"
        delay, pause = found["until_answered_seconds"], found["longest_frame_during_swap_seconds"]
        table.add_row(
            f"{found['swaps']}, {where}, every {found['check_every']} s",
            *milliseconds(delay["median"], delay["max"], found["frame_seconds"]["median"], pause["median"]),
        )
    console.print(table)


def milliseconds(*seconds: float) -> list[str]:
    return [f"{1000 * value:.2f}" for value in seconds]


if __name__ == "__main__":
    main()
