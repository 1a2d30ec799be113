"""Damaged documents through every parser that meets strangers: how many were accepted, how many crashed it.

Prints the number that was run. Exit code 1 if one was accepted that nobody signed, if one crashed a parser (any
exception but a refusal), if one took a second of CPU time, or if memory grew by more than the bound.
"""

import argparse
import gc
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fuzz_targets import REFUSALS, Target, all_targets

from clue_protocol.v1 import forget_pb2 as pb

MAX_GROWTH_BYTES = 64 << 20
MAX_SECONDS = 1.0


@dataclass
class Found:
    """What came of the tries on one target."""

    tries: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    # The very document that was signed, in other bytes: JSON written differently, a signature added or left out.
    same_document: int = 0
    forgeries: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    slowest: float = 0.0
    grown_bytes: int = 0

    def add(self, other: "Found") -> None:
        """Sum up."""
        self.tries += other.tries
        self.refusals += other.refusals
        self.same_document += other.same_document
        self.forgeries += other.forgeries
        self.crashes += other.crashes
        self.slowest = max(self.slowest, other.slowest)
        self.grown_bytes = max(self.grown_bytes, other.grown_bytes)

    @property
    def is_bad(self) -> bool:
        """True if a bound was broken."""
        late, large = self.slowest > MAX_SECONDS, self.grown_bytes > MAX_GROWTH_BYTES
        return bool(self.forgeries or self.crashes) or late or large


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="tries in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    arguments = parser.parse_args()
    begin = time.monotonic()
    work = [(arguments.seed * 1000 + job, arguments.count // arguments.jobs) for job in range(arguments.jobs)]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
        parts = pool.starmap(run, work)
    totals: dict[str, Found] = {}
    for part in parts:
        for name, found in part.items():
            totals.setdefault(name, Found()).add(found)
    show(totals, time.monotonic() - begin)
    if arguments.json:
        body = {name: vars(found) | {"refusals": dict(found.refusals)} for name, found in totals.items()}
        arguments.json.write_text(json.dumps(body, indent=1))
    return 1 if any(found.is_bad for found in totals.values()) else 0


def run(seed: int, count: int) -> dict[str, Found]:
    """Divide ``count`` tries among the targets by their shares."""
    targets = all_targets()
    shares = sum(target.share for target in targets)
    found = {}
    for number, target in enumerate(targets):
        tries = (
            count * target.share // shares
            if number
            else count - sum(count * other.share // shares for other in targets[1:])
        )
        found[target.name] = attack(target, tries, random.Random(seed * 100 + number))
    return found


def attack(target: Target, tries: int, rng: random.Random) -> Found:
    """Damage a genuine document in one to three ways, ``tries`` times."""
    # A collection that happens to come while a parser works must not look at what others left in this process.
    gc.collect()
    gc.freeze()
    try:
        return _attack(target, tries, rng)
    finally:
        gc.unfreeze()


def _attack(target: Target, tries: int, rng: random.Random) -> Found:
    genuine = target.genuine()
    found, process = Found(), psutil.Process()
    before = 0
    for number in range(tries):
        seed = rng.choice(target.seeds)
        data = seed
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = rng.choice(target.mutators)(rng, data or b"\0", target.seeds)
        begin = time.thread_time()
        try:
            accepted = target.judge(data)
        except REFUSALS as error:
            found.refusals[name_of(error)] += 1
        except Exception as error:  # what must never come out of a parser
            found.crashes.append(f"{type(error).__name__}: {error} on {data[:2000]!r}")
        else:
            if accepted in genuine:
                found.same_document += 1
            else:
                found.forgeries.append(repr(data[:2000]))
        found.slowest = max(found.slowest, time.thread_time() - begin)
        if number == min(1000, tries // 2):
            before = process.memory_info().rss
    found.tries = tries
    found.grown_bytes = max(0, process.memory_info().rss - before)
    return found


def name_of(error: Exception) -> str:
    """What a refusal is called: the reason that goes into the receipt, if it has one."""
    reason = getattr(error, "reason", None)
    return type(error).__name__ if reason is None else pb.Reason.Name(reason).removeprefix("REASON_")


def show(totals: dict[str, Found], seconds: float) -> None:
    """A table, and what must be looked at."""
    print(f"{'door':20}{'tries':>10}{'refused':>10}{'same':>8}{'forged':>8}{'crashed':>8}{'slowest':>10}{'memory':>10}")
    for name, found in totals.items():
        print(
            f"{name:20}{found.tries:>10,}{sum(found.refusals.values()):>10,}{found.same_document:>8,}"
            f"{len(found.forgeries):>8}{len(found.crashes):>8}{1000 * found.slowest:>7.0f} ms"
            f"{found.grown_bytes / 1e6:>7.1f} MB"
        )
    for name, found in totals.items():
        print(f"\n{name}: " + ", ".join(f"{kind} {count:,}" for kind, count in found.refusals.most_common()))
        for text in (found.forgeries + found.crashes)[:5]:
            print("  !", text)
    tries = sum(found.tries for found in totals.values())
    forged = sum(len(found.forgeries) for found in totals.values())
    crashed = sum(len(found.crashes) for found in totals.values())
    print(f"\n{tries:,} damaged documents in {seconds:.0f} s: {forged} accepted that nobody signed, {crashed} crashes")


if __name__ == "__main__":
    sys.exit(main())
