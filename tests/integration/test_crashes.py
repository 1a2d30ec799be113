"""Two hundred power cuts: no request is lost, none has two effects, no model is unreadable, each ends in one receipt.

An agent is killed at every change that it makes to the file system and at every commit of its journal, in the
middle of writes, and (with the real worker) at random moments. All the while an app predicts with
:class:`clue_agent.LiveModel` and must never fail.
"""

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clue_agent.boxes import UPDATE, Box
from clue_agent.journal import STEPS, Journal
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore
from clue_agent.vault import Vault
from clue_protocol.envelope import envelope_digest
from clue_protocol.v1 import forget_pb2 as pb
from integration.crash_home import (
    Template,
    configured,
    life,
    make_template,
    patch_envelope,
    receipt_of,
    request_envelope,
    serving,
)
from integration.crash_life import Asked

KILLS = 200
REAL_WORKER_KILLS = 24
# Of the second attempt, and of the patch.
MORE_KILLS = 40


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: what a killed process has written is there in either case, but sooner."""
    memory = Path("/dev/shm")  # noqa: S108
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < 500 << 20:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path, images_root: Path) -> Template:
    return make_template(tmp_path_factory.mktemp("crash") / "template", bundle_dir, images_root)


def check(envelope: bytes, home: Path, wrong: list[str]) -> None:
    """One receipt, one effect, and nothing left of the class, except an update that is handed out."""
    receipt = receipt_of(home)
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED, receipt.detail
    config = configured(home)
    ring = KeyRing(config.keys)
    store = ModelStore(config.store, ring)
    for slot in (store.current_slot(), store.other_slot()):
        stored = store.read(slot)
        assert stored.digest == receipt.model_digest_after
        assert stored.spec.forgotten == ("red",)
    assert receipt.model_digest_before != receipt.model_digest_after
    assert receipt.erasure.old_model
    vault = Vault(config.vault_folder, ring)
    assert vault.count("red", "forget") == vault.count("red", "holdout") == 0
    assert not list((home / "samples" / "red").glob("*"))
    assert not list((home / "holdout" / "red").glob("*"))
    models = [name for name in ring.names() if name.startswith("model-")]
    assert len(models) == 2, models
    assert not [name for name in ring.names() if name.startswith(("sample-", "checkpoint-", "patch-"))], ring.names()
    assert not list((home / "patches").glob("*"))
    updates = Box(home, ring, UPDATE)
    assert updates.jobs() == ([envelope_digest(envelope)] if receipt.update_digest else [])
    for job_digest in updates.jobs():
        assert hashlib.sha256(updates.get(job_digest) or b"").digest() == receipt.update_digest
    journal = Journal(config.journal)
    job = journal.get(envelope_digest(envelope))
    journal.close()
    assert job is not None
    assert set(job.steps) == set(STEPS)
    assert wrong == []


def cut(start: Path, asked: Asked, root: Path, number: int, at: int, mode: str, real: bool, after: float | None) -> str:
    """One power cut of a device that is as in ``start``, and the life after it; what went wrong, or nothing."""
    home = root / f"{number}-{mode}-{at}"
    shutil.copytree(start, home, symlinks=True)
    try:
        with serving(home) as wrong:
            code = life(home, asked, at=at, mode=mode, real=real, kill_after=after)
            if code not in (0, -9):
                return f"{home.name}: the first life ended with {code}"
            code = life(home, asked, real=real)
            if code != 0:
                return f"{home.name}: the second life ended with {code}"
        check(asked.envelope, home, wrong)
        assert receipt_of(home).attempt == asked.attempt
    except AssertionError as error:
        return f"{home.name}: {str(error).splitlines()[0]}"
    shutil.rmtree(home)
    return ""


@pytest.mark.timeout(900)
def test_two_hundred_power_cuts(template: Template, root: Path) -> None:
    clean = root / "clean"
    shutil.copytree(template.home, clean, symlinks=True)
    assert life(clean, template.envelope) == 0
    check(template.envelope, clean, [])
    changes, writes = map(int, (root / "clean.counts").read_text().split())
    assert changes > 60
    assert writes > 10

    rng = random.Random(7)  # noqa: S311
    spots = [("after", at) for at in range(1, changes + 1)] + [("before", at) for at in range(1, changes + 1)]
    spots = [("half", at) for at in range(1, writes + 1)] + rng.sample(spots, len(spots))
    plain = spots[: KILLS - REAL_WORKER_KILLS]
    plan = [(at, mode, False, None) for mode, at in plain]
    plan += [(0, "none", True, rng.uniform(0.2, 4.0)) for _ in range(REAL_WORKER_KILLS)]
    plan += [(at, mode, False, None) for mode, at in spots[len(plain) :][: max(0, KILLS - len(plan))]]
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        asked = Asked(template.envelope)
        jobs = [pool.submit(cut, template.home, asked, root, n, *spot) for n, spot in enumerate(plan)]
        problems = [job.result() for job in jobs]
    seconds = time.monotonic() - started
    bad = [problem for problem in problems if problem]
    print(f"{len(plan)} power cuts, {changes} changes, {writes} writes, {len(bad)} bad, {seconds:.0f} s")
    assert len(plan) >= KILLS or len(plan) == len(spots) + REAL_WORKER_KILLS
    assert not bad, "\n".join(bad[:10])


def some_cuts(start: Path, asked: Asked, root: Path) -> None:
    """Power cuts all over the life that ``asked`` takes."""
    clean = root / "clean"
    shutil.copytree(start, clean, symlinks=True)
    assert life(clean, asked) == 0
    check(asked.envelope, clean, [])
    changes, writes = map(int, (root / "clean.counts").read_text().split())
    spots = [(mode, at) for mode in ("before", "after") for at in range(1, changes + 1)]
    spots += [("half", at) for at in range(1, writes + 1)]
    chosen = random.Random(7).sample(spots, min(MORE_KILLS, len(spots)))  # noqa: S311
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(cut, start, asked, root, n, at, mode, False, None) for n, (mode, at) in enumerate(chosen)]
        problems = [job.result() for job in jobs]
    bad = [problem for problem in problems if problem]
    print(f"{len(chosen)} of {len(spots)} power cuts, {len(bad)} bad")
    assert not bad, "\n".join(bad[:10])


@pytest.mark.timeout(600)
def test_power_cuts_in_a_second_attempt(template: Template, root: Path) -> None:
    """The first FAILED; the second hands out an update, too. Both receipts stand, whatever happens."""
    policy = pb.Policy(max_ua=0.0, max_ra_drop=1, max_tries=1)
    envelope = request_envelope(policy=policy, max_attempts=2, share_update=True)
    failed = root / "failed"
    shutil.copytree(template.home, failed, symlinks=True)
    assert life(failed, Asked(envelope, still_known=5)) == 0
    first = receipt_of(failed)
    assert (first.outcome, first.attempt) == (pb.OUTCOME_FAILED, 1)
    some_cuts(failed, Asked(envelope, attempt=2), root)
    # Asked for once more, the first attempt has the receipt that it had.
    clean = root / "clean"
    (root / "clean.out").unlink()
    assert life(clean, Asked(envelope, attempt=1)) == 0
    assert receipt_of(clean) == first


@pytest.mark.timeout(600)
def test_power_cuts_in_a_patch(template: Template, root: Path) -> None:
    patch = os.urandom(1 << 16)
    some_cuts(template.home, Asked(patch_envelope(template.home, patch), patch=patch), root)
