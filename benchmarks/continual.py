"""Forget the classes of a model one after another on one device: UA and RA after each, as a table, JSON and a plot.

Runs the agent itself (journal, sealed store, guard, erasure) with real CIFAR-10 images::

    python benchmarks/continual.py --data cifar10-imagefolder --model BUNDLE --json continual.json --plot continual.png
"""

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from securesystemslib.signer import CryptoSigner

import clue
from clue.bundle import bundle_from_bytes
from clue_agent.agent import Agent
from clue_agent.config import AgentConfig, WorkConfig
from clue_agent.journal import Journal
from clue_agent.limits import LimitsConfig
from clue_agent.retention import VaultLimits
from clue_agent.sealed import KeyRing
from clue_agent.setup import save_trust
from clue_agent.store import ModelStore
from clue_agent.trust_files import pinned_root
from clue_protocol.documents import Trust
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, open_message, sign_message
from clue_protocol.trust import ROOT_TYPE, FleetTrust, Role, Root, add_signature, attest_time, new_installation_id
from clue_protocol.trust.times import DAY, to_timestamp
from clue_protocol.v1 import agent_pb2
from clue_protocol.v1 import forget_pb2 as pb


def main() -> None:
    """Run and print."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        spec, _ = clue.spec.read_spec(arguments.model)
        _deal(arguments.data, home, spec.classes, arguments.samples, arguments.holdout)
        rows = list(_run(home, arguments.model, spec.classes, arguments.data, arguments.test))
    _print(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"steps": rows}, indent=2))
    if arguments.plot:
        _plot(rows, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder with train/ and test/")
    parser.add_argument("--model", type=Path, required=True, help="model bundle")
    parser.add_argument("--samples", type=int, default=300, help="forget images of each class")
    parser.add_argument("--holdout", type=int, default=50, help="holdout images of each class on the device")
    parser.add_argument("--test", type=int, default=300, help="test images of each class to measure with")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def _deal(data: Path, home: Path, names: tuple[str, ...], samples: int, holdout: int) -> None:
    for name in names:
        for split, target, count in (("train", "samples", samples), ("test", "holdout", holdout)):
            (home / target / name).mkdir(parents=True)
            # The device's holdout comes from the end, what we measure with from the beginning.
            files = sorted((data / split / name).iterdir())
            for path in files[-count:] if target == "holdout" else files[:count]:
                shutil.copy(path, home / target / name)


def _run(home: Path, model: Path, names: tuple[str, ...], data: Path, test: int) -> Any:
    holder, timer, operator, device = (CryptoSigner.generate_ed25519() for _ in range(4))
    now = time.time_ns()
    root = Root(
        installation=new_installation_id(),
        version=1,
        issued_ns=now,
        expires_ns=now + 30 * DAY,
        root=Role((holder.public_key,)),
        timestamp=Role((timer.public_key,)),
        fleets={"yard": FleetTrust(Role((operator.public_key,)))},
    )
    pinned = add_signature(root.to_envelope(), ROOT_TYPE, holder)
    config = AgentConfig(
        device_id="pi-1",
        samples=home / "samples",
        holdout=home / "holdout",
        vault=VaultLimits(holdout_share=0.0),
        work=WorkConfig(nice=0),
        limits=LimitsConfig(min_free_mib=0),
        home=home,
    )
    ModelStore(config.store, KeyRing(config.keys)).install(model)
    journal = Journal(config.journal)
    trust = save_trust(config, Trust("yard", pinned, "127.0.0.1:9092", "(none)").to_json())
    agent = Agent(config, trust, device, journal)
    agent.start()
    yield {"forgotten": "", **_measure(agent, names, data, test)}
    for number, name in enumerate(names[:-1]):
        request = pb.ForgetRequest(
            request_id=f"r-{number}",
            installation=root.installation,
            fleet="yard",
            sequence=number + 1,
            nonce=secrets.token_bytes(16),
            forget_class=name,
            policy=pb.Policy(max_ua=0.1, max_ra_drop=0.05),
            issued_at=to_timestamp(time.time_ns()),
            expires_at=to_timestamp(time.time_ns() + DAY),
        )
        delivery = agent_pb2.DeliverRequest(
            request_envelope=sign_message(request, REQUEST_TYPE, [operator]),
            request_id=request.request_id,
            wait_seconds=60,
        )
        while not (answer := agent.deliver(delivery)).receipt_envelope:
            print(f"{name}: {answer.progress.stage} {100 * answer.progress.fraction:.0f} %", file=sys.stderr)
            if answer.time_nonce:
                at = time.time_ns()
                trusted = pinned_root(trust)
                delivery.time_attestation = attest_time(trusted, timer, at, at // 10**6, answer.time_nonce)
        receipt = open_message(answer.receipt_envelope, RECEIPT_TYPE, pb.Receipt, [device.public_key])
        yield {
            "forgotten": name,
            "outcome": pb.Outcome.Name(receipt.outcome).removeprefix("OUTCOME_").lower(),
            "tries": len(receipt.tries),
            "method": receipt.method,
            "seconds": receipt.unlearning_seconds,
            "detail": receipt.detail,
            **_measure(agent, names, data, test),
        }
    agent.close()
    journal.close()


def _measure(agent: Agent, names: tuple[str, ...], data: Path, test: int) -> dict[str, Any]:
    """Test accuracy: of the forgotten classes together (UA), and of those that remain (RA), argmax over all logits."""
    stored = agent.store.read()
    model = bundle_from_bytes(stored.spec, stored.digest, stored.weights).model
    right: dict[str, float] = {}
    for name in names:
        images = clue.data.image_folder(data / "test", stored.spec, only=name)
        part = clue.data.ImageFolder(images.root, stored.spec, [(p, images.labels[0]) for p in images.paths[:test]])
        ua, _ = clue.evaluate_classes(model, clue.data.loader(part), images.labels[0])
        right[name] = 100 * ua.value
    gone = [right[name] for name in stored.spec.forgotten]
    rest = [right[name] for name in names if name not in stored.spec.forgotten]
    return {
        "ua": sum(gone) / len(gone) if gone else None,
        "ua_worst": max(gone) if gone else None,
        "ra": sum(rest) / len(rest),
        "per_class": right,
    }


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("forgotten", "outcome", "method", "tries", "s", "UA of all forgotten", "worst", "RA of what remains")
    for row in rows:
        if not row["forgotten"]:
            table.add_row("(nothing)", "", "", "", "", "", "", f"{row['ra']:.1f}")
            continue
        numbers = (f"{row['seconds']:.0f}", f"{row['ua']:.1f}", f"{row['ua_worst']:.1f}", f"{row['ra']:.1f}")
        table.add_row(row["forgotten"], row["outcome"], row["method"], str(row["tries"]), *numbers)
    Console(width=110).print(table)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    ticks = range(len(rows))
    axes.plot(ticks, [row["ra"] for row in rows], "o-", color="#0072B2", label="RA: classes that remain")
    axes.plot(
        ticks[1:], [row["ua"] for row in rows[1:]], "s--", color="#D55E00", label="UA: all classes forgotten so far"
    )
    axes.set_xticks(ticks, ["start", *(f"+ {row['forgotten']}" for row in rows[1:])], rotation=35, ha="right")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left")
    axes.set_title("Classes forgotten one after another on one device")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
