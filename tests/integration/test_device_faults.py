"""What can go wrong on a device, each with the end it comes to; an app predicts all the while and never fails."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clue_agent.journal import Journal
from clue_agent.limits import LimitsConfig
from clue_agent.sealed import KeyRing
from clue_agent.store import ModelStore
from clue_protocol.v1 import forget_pb2 as pb
from integration.crash_home import Template, life, make_template, receipt_of, request_envelope, serving

ROOMY = LimitsConfig(min_free_mib=0, max_celsius=119)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, bundle_dir: Path, images_root: Path) -> Template:
    return make_template(tmp_path_factory.mktemp("faults") / "template", bundle_dir, images_root)


@pytest.fixture
def home(template: Template, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template.home, tmp_path / "home", symlinks=True))


def ends(home: Path, envelope: bytes, outcome: int, reason: int, limits: LimitsConfig = ROOMY) -> pb.Receipt:
    """Deliver to the real agent with the real worker, an app serving; the receipt has this end."""
    with serving(home) as wrong:
        assert life(home, envelope, real=True, limits=limits) == 0
    assert wrong == []
    receipt = receipt_of(home)
    names = pb.Outcome.Name(receipt.outcome), pb.Reason.Name(receipt.reason)
    assert names == (pb.Outcome.Name(outcome), pb.Reason.Name(reason)), receipt.detail  # type: ignore[arg-type]
    return receipt


def digest_of(home: Path) -> str:
    return ModelStore(home / "model", KeyRing(home / "keys")).verify()[1]


@pytest.mark.parametrize(
    ("settings", "limits", "reason", "detail"),
    [
        (
            {"hyperparameters_json": '{"lr": 1e30, "clip_norm": 0, "min_steps": 4}'},
            ROOMY,
            "DIVERGED",
            "lower the learning rate",
        ),
        ({}, ROOMY.model_copy(update={"memory_mib": 150}), "OUT_OF_MEMORY", "MiB"),
        ({}, ROOMY.model_copy(update={"budget_seconds": 0.5}), "OUT_OF_TIME", "0.5 s"),
        ({}, ROOMY.model_copy(update={"min_free_mib": 1 << 30}), "NO_SPACE", "must stay free"),
        ({"method": "no_such"}, ROOMY, "INVALID_REQUEST", "no_such"),
    ],
    ids=["NaN in training", "memory limit", "out of time", "too little room", "unknown method"],
)
def test_a_job_that_cannot_end_well_fails_with_a_reason(
    home: Path, settings: dict[str, object], limits: LimitsConfig, reason: str, detail: str
) -> None:
    before = digest_of(home)
    expected = pb.Reason.Value(f"REASON_{reason}")
    receipt = ends(home, request_envelope(**settings), pb.OUTCOME_FAILED, expected, limits)
    assert detail in receipt.detail
    assert digest_of(home) == before == receipt.model_digest_after


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_corrupt_slot_falls_back_to_the_other(home: Path, template: Template) -> None:
    rot(home / "model" / "a" / "weights.sealed")
    receipt = ends(home, template.envelope, pb.OUTCOME_SUCCEEDED, pb.REASON_UNSPECIFIED)
    assert digest_of(home) == receipt.model_digest_after


def test_a_corrupt_model_without_a_whole_copy_stops_the_agent_with_one_line(home: Path, template: Template) -> None:
    """There is nothing to forget from, and nothing to go back to: the agent says so, and an app keeps what it has."""
    with serving(home) as wrong:
        for slot in "ab":
            rot(home / "model" / slot / "weights.sealed")
        assert life(home, template.envelope, real=True) == 1
    assert wrong == []


def test_a_corrupt_journal_is_begun_anew_and_the_request_still_ends(home: Path, template: Template) -> None:
    first = ends(home, template.envelope, pb.OUTCOME_SUCCEEDED, pb.REASON_UNSPECIFIED)
    (home / "journal.sqlite").write_bytes(os.urandom(8192))
    (home.parent / "home.out").unlink()
    again = ends(home, template.envelope, pb.OUTCOME_SUCCEEDED, pb.REASON_UNSPECIFIED)
    # Done once: the model itself says what it has forgotten.
    assert again.model_digest_before == again.model_digest_after == first.model_digest_after
    assert "forgotten earlier" in again.detail
    assert list(home.glob("journal.sqlite.damaged-*"))


def test_a_request_that_comes_after_its_deadline_is_refused(home: Path) -> None:
    """As after a connection that was gone for longer than the request was good for."""
    receipt = ends(home, request_envelope(expires_in=-5), pb.OUTCOME_REJECTED, pb.REASON_EXPIRED)
    assert "expired on" in receipt.detail


def test_a_clock_at_1970(home: Path, template: Template) -> None:
    with serving(home) as wrong:
        assert life(home, template.envelope, mode="1970", real=True) == 0
    assert wrong == []
    receipt = receipt_of(home)
    assert receipt.outcome == pb.OUTCOME_SUCCEEDED
    assert receipt.latency_seconds >= 0


@pytest.fixture
def small_disk(template: Template, tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A home on a file system of its own, with so many KiB left free."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = tmp_path / "disk"
    mount.mkdir()

    def make(free_kib: int) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], check=True)
        home = Path(shutil.copytree(template.home, mount / "home", symlinks=True))
        stat = os.statvfs(mount)
        fill = stat.f_bavail * stat.f_frsize - (free_kib << 10)
        (mount / "fill").write_bytes(b"\0" * max(0, fill))
        return home

    yield make
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("free_kib", [0, 64, 1400, 2200])
def test_a_full_disk_ends_the_job_and_not_the_model(
    small_disk: Callable[[int], Path], free_kib: int, template: Template
) -> None:
    home = small_disk(free_kib)
    before = digest_of(home)
    with serving(home) as wrong:
        code = life(home, template.envelope, real=True)
    assert wrong == []
    assert digest_of(home)
    if code == 1:
        # Not even a journal can be made: the agent does not start, and says why.
        assert digest_of(home) == before
        return
    receipt = receipt_of(home)
    if receipt.outcome != pb.OUTCOME_SUCCEEDED:
        assert pb.Reason.Name(receipt.reason) in ("REASON_NO_SPACE", "REASON_STORAGE_FAILED"), receipt.detail
        assert digest_of(home) == before
    # With room again, the device answers as it did, or goes on where it was.
    (home.parent / "fill").unlink()
    assert life(home, request_envelope(request_id="r-2"), real=True) == 0


def test_a_read_only_disk_is_said_and_the_app_goes_on(small_disk: Callable[[int], Path], template: Template) -> None:
    home = small_disk(8000)
    Journal(home / "journal.sqlite").close()
    before = digest_of(home)
    with serving(home) as wrong:
        subprocess.run(["mount", "-o", "remount,ro", str(home.parent)], check=True)
        code = life(home, template.envelope, real=True)
        subprocess.run(["mount", "-o", "remount,rw", str(home.parent)], check=True)
    assert wrong == []
    assert code == 1
    assert digest_of(home) == before
