"""A device that can be killed at any moment, an app that serves all the while, and what the other side gets."""

import hashlib
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from trust_house import HOUSE, request_message, sign_request

from clue_agent import LiveModel
from clue_agent.config import AgentConfig, WorkConfig, config_text
from clue_agent.limits import LimitsConfig
from clue_agent.retention import VaultLimits
from clue_agent.sealed import KeyRing
from clue_agent.setup import save_trust
from clue_agent.store import ModelStore
from clue_protocol.envelope import RECEIPT_TYPE, open_message
from clue_protocol.keys import create_signing_key, load_signing_key
from clue_protocol.v1 import forget_pb2 as pb
from integration.crash_life import Asked, live

_CONTEXT = multiprocessing.get_context("forkserver")
# Starting a process polls all others: two threads that ask for one exit code at a time, and one of them gets 255.
_STARTING = threading.Lock()
_CONTEXT.set_forkserver_preload(["clue_agent.agent", "clue_protocol.keys"])


@dataclass(frozen=True)
class Template:
    """A device before its first request, and the request."""

    home: Path
    envelope: bytes


def make_template(home: Path, bundle_dir: Path, images_root: Path) -> Template:
    """A device in ``home`` with three samples to forget and twelve to measure with."""
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
    save_trust(config, HOUSE.trust().to_json())
    return Template(home, request_envelope())


def request_envelope(*, expires_in: float = 3600, **changes: Any) -> bytes:
    """A signed request to forget "red", quick and with a policy that anything meets."""
    settings = {"method": "clue", "hyperparameters_json": '{"min_steps": 2, "max_steps": 2}'}
    return sign_request(request_message(**(settings | {"expires_in": expires_in} | changes)))


def configured(home: Path) -> AgentConfig:
    return AgentConfig(
        device_id="cam-1",
        samples=home / "samples",
        holdout=home / "holdout",
        vault=VaultLimits(holdout_share=0.0),
        share_updates=True,
        work=WorkConfig(nice=0),
        limits=LimitsConfig(min_free_mib=0, max_celsius=119),
        home=home,
    )


@contextmanager
def serving(home: Path) -> Iterator[list[str]]:
    """An app that predicts all the while; yields what went wrong."""
    wrong: list[str] = []
    stop, ready = threading.Event(), threading.Event()
    frame = torch.zeros(3, 8, 8, dtype=torch.uint8)

    def loop() -> None:
        try:
            with LiveModel(home, check_every=0.01) as app:
                while not stop.wait(0.005):
                    answer = app.predict(frame)
                    ready.set()
                    forgotten = app.forgotten
                    # Of the model that answered: another may have come in between.
                    if answer.model_digest == app.digest and answer.label in forgotten:
                        wrong.append(f"answered {answer.label!r}, which is forgotten")
        except BaseException as error:
            wrong.append(repr(error))
        finally:
            ready.set()

    thread = threading.Thread(target=loop)
    thread.start()
    assert ready.wait(60)
    try:
        yield wrong
    finally:
        stop.set()
        thread.join(30)


def life(
    home: Path,
    asked: bytes | Asked,
    *,
    at: int = 0,
    mode: str = "none",
    real: bool = False,
    kill_after: float | None = None,
    limits: LimitsConfig | None = None,
) -> int:
    """One life of the agent; its exit code (-9 for a kill). See :mod:`integration.crash_life` for ``mode``."""
    config = configured(home)
    if limits is not None:
        config = config.model_copy(update={"limits": limits})
    out = home.parent / f"{home.name}.out"
    what = Asked(asked) if isinstance(asked, bytes) else asked
    process = _CONTEXT.Process(target=live, args=(config, what, out, at, mode, real))
    with _STARTING:
        process.start()
    if kill_after is not None and not wait([process.sentinel], kill_after):
        with _STARTING:
            process.kill()
    assert wait([process.sentinel], 180), "the agent hangs"
    with _STARTING:
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def receipt_of(home: Path) -> pb.Receipt:
    """The one receipt that all lives gave, its signature checked."""
    got = set(receipts_of(home))
    assert len(got) == 1, f"{len(got)} different receipts"
    key = load_signing_key(home / "receipt-key.pem").public_key
    return open_message(got.pop(), RECEIPT_TYPE, pb.Receipt, [key])


def patch_envelope(home: Path, patch: bytes) -> bytes:
    """A signed request to apply ``patch`` to the model in ``home``."""
    config = configured(home)
    digest = ModelStore(config.store, KeyRing(config.keys)).verify()[1]
    reference = pb.PatchReference(
        source_request_id="r-0", digest=hashlib.sha256(patch).digest(), base_model_digest=digest, updates=1
    )
    return request_envelope(patch=reference)


def receipts_of(home: Path) -> list[bytes]:
    """What the other side of the wire got, over all lives."""
    out = home.parent / f"{home.name}.out"
    data, found = out.read_bytes() if out.exists() else b"", []
    while data:
        length = int.from_bytes(data[:4], "big")
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found
