"""Devices without forget samples: patch them with the combined updates of devices that have some.

Splits an image folder over devices: some hold forget images (unequal numbers), the others none; every one has a
holdout of its own. The first ones unlearn with the fleet's default method, the coordinator's code combines their
updates, the others apply the patch. Then the same with hostile devices among them, by the coordinator's rule and by
a plain mean::

    python benchmarks/federated.py --data cifar10.zip --model BUNDLE --deep --attacks --json federated.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset

import clue
from clue.bundle import ModelBundle, load_bundle, load_weights
from clue.data.decoded import MappedImages, decode, mapped, open_source
from clue.errors import ClueError
from clue.evaluate import LinearProbe, ModelView, Relearning, evaluate_classes
from clue.federated import Change, Update, apply_update, make_update, update_from_bytes, update_to_bytes
from clue_agent.guard import DEFAULT_METHOD
from clue_coordinator.aggregate import combine, weighted_mean
from clue_coordinator.errors import AggregationError

MAX_UA, MAX_RA_DROP = 10.0, 5.0


@dataclass
class Fleet:
    """The base model, who has how many forget images, and everyone's images.

    Attributes:
        base: the model on every device.
        train: training images; forget images come from the first ones of each class.
        test: test images; every device's holdout is a part of its own.
        counts: forget images of each contributor.
        patched: devices without any.
    """

    base: ModelBundle
    train: MappedImages
    test: MappedImages
    counts: list[int]
    patched: int

    def samples(self, device: int, label: int) -> "Subset[Any]":
        """A contributor's forget images, which no other device has."""
        start = sum(self.counts[:device])
        rows = torch.nonzero(self.train.labels == label).flatten()[start : start + self.counts[device]]
        return rows_of(self.train, rows)

    def holdout(self, device: int) -> "Subset[Any]":
        """A device's holdout: every class, no image twice in the fleet."""
        devices = len(self.counts) + self.patched
        parts = [torch.nonzero(self.test.labels == k).flatten() for k in torch.unique(self.test.labels)]
        return rows_of(self.test, torch.cat([part[device::devices] for part in parts]))


def rows_of(images: MappedImages, rows: torch.Tensor) -> "Subset[Any]":
    return Subset(images, rows.tolist())


def main() -> None:
    """Run and print."""
    arguments = _arguments()
    torch.set_num_threads(1)
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as folder:
        base = _base(arguments, Path(folder))
        cache = arguments.cache or Path(folder) / "images"
        decoded = decode(open_source(arguments.data), base.spec.input_size, cache)
        fleet = Fleet(
            base,
            mapped(decoded, "train", base.spec),
            mapped(decoded, "test", base.spec),
            [int(count) for count in arguments.samples.split(",")],
            arguments.patched,
        )
        found = {}
        for name in arguments.classes.split(","):
            found[name] = _one_class(fleet, name, arguments)
            _print(console, name, found[name])
            if arguments.json:
                body = {"samples": fleet.counts, "patched": fleet.patched, "method": arguments.method, "classes": found}
                arguments.json.write_text(json.dumps(body, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder or .zip with train/<class>/ and test/<class>/")
    parser.add_argument("--model", type=Path, required=True, help="model bundle, or ResNet-20 weights (.safetensors)")
    parser.add_argument("--classes", default="bird,cat,ship,airplane")
    parser.add_argument("--samples", default="50,100,200,300", help="forget images of each contributor")
    parser.add_argument("--patched", type=int, default=4, help="devices without forget images")
    parser.add_argument("--method", default=DEFAULT_METHOD)
    parser.add_argument("--own-seeds", action="store_true", help="a seed for each device, not the request's")
    parser.add_argument("--attacks", action="store_true", help="with hostile contributors, too")
    parser.add_argument("--deep", action="store_true", help="linear probe and relearning, too (a minute a class)")
    parser.add_argument("--cache", type=Path, help="keep decoded images here")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _base(arguments: argparse.Namespace, folder: Path) -> ModelBundle:
    if arguments.model.is_dir():
        return load_bundle(arguments.model)
    spec = clue.ModelSpec("resnet20", open_source(arguments.data).classes)
    model = clue.architectures.build_model(spec)
    load_weights(model, arguments.model)
    clue.save_bundle(folder / "base", model, spec)
    return load_bundle(folder / "base")


def _one_class(fleet: Fleet, name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    label = fleet.base.spec.class_index(name)
    made: dict[str, Update] = {}
    models: list[nn.Module] = []
    seconds: list[float] = []
    for device, count in enumerate(fleet.counts):
        seed = device + 1 if arguments.own_seeds else 0
        images = fleet.samples(device, label)
        outcome = clue.forget(fleet.base.model, images, label, method=arguments.method, seed=seed, batch_size=64)
        made[f"pi-{device + 1}"] = make_update(fleet.base, outcome.model, name, samples=count)
        models.append(outcome.model)
        seconds.append(outcome.report.seconds)
    sent = {device: update_to_bytes(update) for device, update in made.items()}
    started = time.perf_counter()
    patch, report = combine(sent, base=fleet.base.digest, forget_class=name)
    combining = time.perf_counter() - started
    data = update_to_bytes(patch)
    started = time.perf_counter()
    patched = apply_update(fleet.base, update_from_bytes(data))
    applying = time.perf_counter() - started
    result: dict[str, Any] = {
        "unlearning_seconds": seconds,
        "update_bytes": [len(update) for update in sent.values()],
        "update_bytes_float32": max(len(update_to_bytes(update, "float32")) for update in made.values()),
        "patch_bytes": len(data),
        "combine_seconds": combining,
        "apply_seconds": applying,
        "cosines": _cosines([update_from_bytes(one) for one in sent.values()]),
        "devices": [_device(fleet, number, patched, label) for number in range(len(sent), len(sent) + fleet.patched)],
        "report": report.as_dict(),
    }
    alone = dict(zip([f"own: {count} images" for count in fleet.counts], models, strict=True))
    exact = apply_update(fleet.base, combine(made, base=fleet.base.digest, forget_class=name)[0])
    plain = apply_update(fleet.base, weighted_mean(_read(sent), dict.fromkeys(sent, 1.0)))
    rows = {"original": fleet.base.model, **alone, "patch": patched.model, "plain mean": plain.model}
    result["whole test set"] = {which: _whole(fleet, model, label) for which, model in rows.items()}
    result["rounding"] = _rounding(fleet, patched.model, exact.model)
    if arguments.deep:
        deep = {"original": fleet.base.model, f"own: {fleet.counts[-1]} images": models[-1], "patch": patched.model}
        result["deep"] = {which: _deep(fleet, model, label) for which, model in deep.items()}
    if arguments.attacks:
        result["attacks"] = list(_attacks(fleet, name, sent))
    return result


def _read(sent: Mapping[str, bytes]) -> dict[str, Update]:
    return {device: update_from_bytes(data) for device, data in sent.items()}


def _device(fleet: Fleet, number: int, patched: ModelBundle, label: int) -> dict[str, Any]:
    """UA and RA on a device's own holdout, before and after the patch."""
    batches = DataLoader(fleet.holdout(number), batch_size=64)
    ua_before, ra_before = evaluate_classes(fleet.base.model, batches, label)
    ua, ra = evaluate_classes(patched.model, batches, label)
    drop = 100 * (ra_before.value - ra.value)
    return {
        "device": f"pi-{number + 1}",
        "holdout": [ua.samples, ra.samples],
        "ua_before": 100 * ua_before.value,
        "ua": 100 * ua.value,
        "ra_before": 100 * ra_before.value,
        "ra": 100 * ra.value,
        "ok": 100 * ua.value <= MAX_UA and drop <= MAX_RA_DROP,
    }


def _whole(fleet: Fleet, model: nn.Module, label: int, every: int = 1) -> dict[str, float]:
    """UA and TA on the test set, or on every so many of its images."""
    images = rows_of(fleet.test, torch.arange(0, len(fleet.test), every))
    ua, ta = evaluate_classes(model, DataLoader(images, batch_size=50), label)
    return {"ua": 100 * ua.value, "ta": 100 * ta.value}


@torch.inference_mode()
def _rounding(fleet: Fleet, rounded: nn.Module, exact: nn.Module) -> dict[str, float]:
    """What float16 updates and patch change against float32 all the way, on 1,000 test images."""
    images = torch.stack([fleet.test[row][0] for row in range(0, len(fleet.test), max(1, len(fleet.test) // 1000))])
    one, other = (torch.cat([model.eval()(part) for part in images.split(100)]) for model in (rounded, exact))
    same = (one.argmax(1) == other.argmax(1)).float().mean()
    return {"logit_difference": float((one - other).abs().max()), "same_answers": 100 * float(same)}


def _deep(fleet: Fleet, model: nn.Module, label: int) -> dict[str, Any]:
    """What is left in the features: linear probe (600 training images a class) and relearning."""
    rows = torch.cat(
        [torch.nonzero(fleet.train.labels == k).flatten()[-600:] for k in range(len(fleet.base.spec.classes))]
    )
    view = ModelView(model, rows_of(fleet.train, rows), fleet.test, label)
    back, reset = Relearning().measure(view), Relearning(reset_head=True).measure(view)
    return {
        "probe": 100 * LinearProbe().measure(view).value,
        "relearn": [100 * back.value(steps) for steps in (5, 40)],
        "relearn_row_reset": [100 * reset.value(steps) for steps in (5, 40)],
    }


def _cosines(updates: list[Update]) -> dict[str, list[float]]:
    """Smallest and mean cosine between two devices: of the whole update, and of each tensor."""
    found: dict[str, list[float]] = {}
    tensors = sorted({tensor for update in updates for tensor in update.changes})
    pieces: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in tensors:
        shape = next(u.changes[tensor].shape for u in updates if tensor in u.changes)
        none = np.zeros(shape, np.float32)
        pieces[tensor] = np.stack(
            [(u.changes[tensor].dense() if tensor in u.changes else none).ravel() for u in updates]
        )
    for which, block in {"all": np.concatenate(list(pieces.values()), axis=1), **pieces}.items():
        unit = block / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-30)
        pairs = (unit @ unit.T)[np.triu_indices(len(updates), 1)]
        found[which] = [float(pairs.min()), float(pairs.mean())]
    return found


# Hostile devices. Each gets an honest update and returns what it sends instead.


def _noise(update: Update, rng: np.random.Generator, length: float = 100.0) -> Update:
    """Random numbers on the honest positions, ``length`` times as long as the honest change of each tensor."""
    changes = {}
    for tensor, change in update.changes.items():
        values = rng.standard_normal(len(change.values)).astype(np.float32)
        values *= length * np.linalg.norm(change.values) / np.linalg.norm(values)
        changes[tensor] = Change(change.shape, change.indices, values)
    return replace(update, changes=changes)


def _flipped(update: Update, factor: float = -1.0) -> Update:
    changes = {t: Change(c.shape, c.indices, c.values * np.float32(factor)) for t, c in update.changes.items()}
    return replace(update, changes=changes)


def _copied_row(update: Update, rng: np.random.Generator) -> Update:
    """The honest row of the classifier, to look alike, and noise of ordinary length everywhere else."""
    changed = dict(_noise(update, rng, 1.0).changes)
    changed |= {
        tensor: change for tensor, change in update.changes.items() if len(change.shape) == 1 or change.size < 2000
    }
    return replace(update, changes=changed)


def _attacks(fleet: Fleet, name: str, sent: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    """With one hostile of four, and two of five (the fifth honest device's update is the second's)."""
    spec, label = fleet.base.spec, fleet.base.spec.class_index(name)
    rng = np.random.default_rng(0)
    other = next(k for k in range(len(spec.classes)) if k != label)
    images = fleet.samples(0, other)
    outcome = clue.forget(fleet.base.model, images, other, method=DEFAULT_METHOD, batch_size=64)
    elsewhere = make_update(fleet.base, outcome.model, spec.classes[other], samples=fleet.counts[0])
    honest = _read(sent)
    names = list(honest)
    shared = _noise(honest[names[-1]], rng)
    hostile = {
        "noise, 100 times as long": lambda update: _noise(update, rng),
        "the same noise from all": lambda _update: shared,
        "sign flipped": _flipped,
        "ten times as long": lambda update: _flipped(update, 10.0),
        "another class": lambda update: replace(elsewhere, forget_class=update.forget_class),
        "honest row, noise in the features": lambda update: _copied_row(update, rng),
        "honest, claims a billion images": lambda update: replace(update, samples=10**9),
    }
    for what, change in hostile.items():
        for bad, total in ((1, 4), (2, 5)):
            devices = dict(honest)
            if total > len(honest):
                devices["pi-9"] = honest[names[1]]
            # The hostile ones are those with the most images: what they replace is lost.
            for device in names[-bad:]:
                devices[device] = change(devices[device])
            yield {
                "attack": what,
                "hostile": bad,
                "of": len(devices),
                **_stood(fleet, name, label, devices, names[-bad:]),
            }


def _stood(fleet: Fleet, name: str, label: int, devices: Mapping[str, Update], hostile: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain = weighted_mean(devices, {device: float(update.samples) for device, update in devices.items()})
    found["plain"] = _whole_or_error(fleet, plain, label)
    try:
        patch, report = combine(
            {d: update_to_bytes(u) for d, u in devices.items()}, base=fleet.base.digest, forget_class=name
        )
    except AggregationError as error:
        return found | {"robust": {"refused": str(error)}}
    found["robust"] = _whole_or_error(fleet, patch, label)
    found["dropped"] = {d: share.reason for d, share in report.devices.items() if share.outcome == "dropped"}
    found["clipped"] = [d for d, share in report.devices.items() if share.outcome == "clipped"]
    found["hostile_share"] = sum(report.devices[device].weight for device in hostile)
    return found


def _whole_or_error(fleet: Fleet, patch: Update, label: int) -> dict[str, Any]:
    try:
        return _whole(fleet, apply_update(fleet.base, patch).model, label, every=5)
    except ClueError as error:
        return {"refused": str(error)}


def _print(console: Console, name: str, found: dict[str, Any]) -> None:
    table = Table("device", "holdout", "UA %", "RA %", "UA <= 10, RA drop <= 5", title=f"patched, class {name}")
    for row in found["devices"]:
        ua, ra = (f"{row[f'{which}_before']:.1f} -> {row[which]:.1f}" for which in ("ua", "ra"))
        table.add_row(row["device"], f"{row['holdout'][0]} + {row['holdout'][1]}", ua, ra, "yes" if row["ok"] else "NO")
    console.print(table)
    table = Table("model", "UA %", "TA %", "probe %", "back 5 / 40", "row reset 5 / 40", title="whole test set")
    for which, row in found["whole test set"].items():
        deep = found.get("deep", {}).get(which)
        more = []
        if deep:
            pairs = (" / ".join(f"{v:.1f}" for v in deep[key]) for key in ("relearn", "relearn_row_reset"))
            more = [f"{deep['probe']:.1f}", *pairs]
        table.add_row(which, f"{row['ua']:.1f}", f"{row['ta']:.1f}", *more)
    console.print(table)
    smallest = min(low for low, _ in found["cosines"].values())
    console.print(
        f"unlearning {statistics.fmean(found['unlearning_seconds']):.1f} s a device; "
        f"combining {found['combine_seconds']:.2f} s; "
        f"applying {found['apply_seconds']:.2f} s; update {max(found['update_bytes']):,} bytes "
        f"(float32 {found['update_bytes_float32']:,}), patch {found['patch_bytes']:,}; "
        f"cosine between devices at least {found['cosines']['all'][0]:.2f}, in any tensor {smallest:.2f}; "
        f"float16 changes logits by at most {found['rounding']['logit_difference']:.4f}, "
        f"{found['rounding']['same_answers']:.1f} % of answers are the same"
    )
    if "attacks" in found:
        table = Table(
            "hostile", "of", "what they send", "plain mean UA / TA", "ours UA / TA", "their share", title="attacks"
        )
        for row in found["attacks"]:
            plain, robust = (
                "refused" if "refused" in row[k] else f"{row[k]['ua']:.1f} / {row[k]['ta']:.1f}"
                for k in ("plain", "robust")
            )
            share = f"{100 * row['hostile_share']:.0f} %" if "hostile_share" in row else ""
            table.add_row(str(row["hostile"]), str(row["of"]), row["attack"], plain, robust, share)
        console.print(table)


if __name__ == "__main__":
    main()
