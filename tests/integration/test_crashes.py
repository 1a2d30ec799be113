"""Two hundred power cuts: no request is lost, none has two effects, no model is unreadable, each ends in one receipt.

An agent is killed at every change that it makes to the file system and at every commit of its journal, in the
middle of writes, and (with the real worker) at random moments. All the while an app predicts with
:class:`clue_agent.LiveModel` and must never fail.
"""

import multiprocessing
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from securesystemslib.signer import CryptoSigner

from clue_agent import LiveModel
from clue_agent.config import AgentConfig, WorkConfig, config_text
from clue_agent.journal import STEPS, Journal
from clue_agent.limits import LimitsConfig
from clue_agent.retention import VaultLimits
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore
from clue_agent.vault import Vault
from clue_protocol.envelope import RECEIPT_TYPE, REQUEST_TYPE, envelope_digest, open_message, sign_message
from clue_protocol.keys import create_signing_key, key_to_json, load_signing_key
from clue_protocol.v1 import forget_pb2 as pb
from integration.crash_life import live

KILLS = 200
REAL_WORKER_KILLS = 24
_OPERATOR = CryptoSigner.generate_ed25519()
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["clue_agent.agent", "clue_protocol.keys"])


@dataclass(frozen=True)
class Template:
    """A device before its first request, and the request."""

    home: Path
    envelope: bytes


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path, images_root: Path) -> Template:
    home = tmp_path_factory.mktemp("crash") / "template"
    home.mkdir()
    for folder, split, count in (("samples", "train", 3), ("holdout", "test", 3)):
        for name in ("red", "green", "blue", "stripes"):
            (home / folder / name).mkdir(parents=True)
            for path in sorted((images_root / split / name).iterdir())[
                : count if folder == "holdout" or name == "red" else 0
            ]:
                shutil.copy(path, home / folder / name)
    create_signing_key(home / "receipt-key.pem")
    config = configured(home)
    ModelStore(config.store, KeyRing(config.keys)).install(bundle_dir)
    (home / "agent.toml").write_text(config_text(config))
    request = pb.ForgetRequest(
        request_id="r-1",
        fleet="yard",
        sequence=1,
        forget_class="red",
        method="clue",
        hyperparameters_json='{"min_steps": 2, "max_steps": 2}',
        policy=pb.Policy(max_ua=1, max_ra_drop=1),
    )
    request.expires_at.FromSeconds(int(time.time()) + 3600)
    return Template(home, sign_message(request, REQUEST_TYPE, [_OPERATOR]))


def configured(home: Path) -> AgentConfig:
    return AgentConfig(
        device_id="cam-1",
        samples=home / "samples",
        holdout=home / "holdout",
        vault=VaultLimits(holdout_share=0.0),
        work=WorkConfig(nice=0),
        limits=LimitsConfig(min_free_mib=0, max_celsius=119),
        home=home,
    )


@contextmanager
def serving(home: Path) -> Iterator[list[str]]:
    """An app that predicts all the while; yields what went wrong."""
    wrong: list[str] = []
    stop = threading.Event()
    frame = torch.zeros(3, 8, 8, dtype=torch.uint8)

    def loop() -> None:
        try:
            with LiveModel(home, check_every=0.01) as app:
                while not stop.wait(0.005):
                    answer = app.predict(frame)
                    forgotten = app.forgotten
                    # Of the model that answered: another may have come in between.
                    if answer.model_digest == app.digest and answer.label in forgotten:
                        wrong.append(f"answered {answer.label!r}, which is forgotten")
        except BaseException as error:
            wrong.append(repr(error))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join(30)


def life(template: Template, home: Path, at: int, mode: str, real: bool, kill_after: float | None = None) -> int:
    """One life of the agent; its exit code (-9 for a kill)."""
    arguments = (
        configured(home),
        key_to_json(_OPERATOR.public_key),
        template.envelope,
        home.parent / f"{home.name}.out",
    )
    process = _CONTEXT.Process(target=live, args=(*arguments, at, mode, real))
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        process.kill()
    process.join(180)
    assert process.exitcode is not None, "the agent hangs"
    return process.exitcode


def receipts_of(home: Path) -> list[bytes]:
    """What the other side of the wire got, over all lives."""
    out = home.parent / f"{home.name}.out"
    data, found = out.read_bytes() if out.exists() else b"", []
    while data:
        length = int.from_bytes(data[:4], "big")
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def check(template: Template, home: Path, wrong: list[str]) -> None:
    """One receipt, one effect, and nothing left of the class."""
    got = receipts_of(home)
    assert len(set(got)) == 1, f"{len(set(got))} different receipts"
    receipt = open_message(got[0], RECEIPT_TYPE, pb.Receipt, [load_signing_key(home / "receipt-key.pem").public_key])
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
    assert not [name for name in ring.names() if name.startswith(("sample-", "checkpoint-"))], ring.names()
    journal = Journal(config.journal)
    job = journal.get(envelope_digest(template.envelope))
    journal.close()
    assert job is not None
    assert set(job.steps) == set(STEPS)
    assert wrong == []


def cut(template: Template, root: Path, number: int, at: int, mode: str, real: bool, after: float | None) -> str:
    """One power cut and the life after it; what went wrong, or nothing."""
    home = root / f"{number}-{mode}-{at}"
    shutil.copytree(template.home, home, symlinks=True)
    try:
        with serving(home) as wrong:
            code = life(template, home, at, mode, real, after)
            if code not in (0, -9):
                return f"{home.name}: the first life ended with {code}"
            if life(template, home, 0, "none", real) != 0:
                return f"{home.name}: the second life did not end well"
        check(template, home, wrong)
    except AssertionError as error:
        return f"{home.name}: {str(error).splitlines()[0]}"
    shutil.rmtree(home)
    return ""


@pytest.mark.timeout(900)
def test_two_hundred_power_cuts(template: Template, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    shutil.copytree(template.home, clean, symlinks=True)
    assert life(template, clean, 0, "none", real=False) == 0
    check(template, clean, [])
    changes, writes = map(int, (tmp_path / "clean.counts").read_text().split())
    assert changes > 60
    assert writes > 10

    rng = random.Random(7)  # noqa: S311
    spots = [("after", at) for at in range(1, changes + 1)] + [("before", at) for at in range(1, changes + 1)]
    spots = [("half", at) for at in range(1, writes + 1)] + rng.sample(spots, len(spots))
    plain = spots[: KILLS - REAL_WORKER_KILLS]
    plan = [(at, mode, False, None) for mode, at in plain]
    plan += [(0, "none", True, rng.uniform(0.2, 6.0)) for _ in range(REAL_WORKER_KILLS)]
    plan += [(at, mode, False, None) for mode, at in spots[len(plain) :][: max(0, KILLS - len(plan))]]
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(cut, template, tmp_path, n, *spot) for n, spot in enumerate(plan)]
        problems = [job.result() for job in jobs]
    seconds = time.monotonic() - started
    bad = [problem for problem in problems if problem]
    print(f"{len(plan)} power cuts, {changes} changes, {writes} writes, {len(bad)} bad, {seconds:.0f} s")
    assert len(plan) >= KILLS or len(plan) == len(spots) + REAL_WORKER_KILLS
    assert not bad, "\n".join(bad[:10])
