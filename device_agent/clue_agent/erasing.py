"""Destroy what a forgotten class has left on this device: its images, and the model that knew it."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from clue_agent.boxes import Box
from clue_agent.config import AgentConfig
from clue_agent.errors import StoreError, VaultError
from clue_agent.forgotten import Forgotten, ForgottenList
from clue_agent.inbox import erase_originals
from clue_agent.journal import MODEL_JOB, Job
from clue_agent.samples import count_images
from clue_agent.sealed import KeyRing
from clue_agent.sharing import Updates
from clue_agent.store import CANDIDATE, INCOMING, ModelStore
from clue_agent.vault import Vault
from clue_protocol.v1 import forget_pb2 as pb

log = logging.getLogger(__name__)


class Eraser:
    """Every method may be repeated after a crash and then does what was left to do."""

    def __init__(
        self,
        config: AgentConfig,
        store: ModelStore,
        vault: Vault,
        ring: KeyRing,
        forgotten: ForgottenList,
        patches: Box,
        updates: Updates,
    ) -> None:
        self._config = config
        self._store = store
        self._vault = vault
        self._ring = ring
        self._forgotten = forgotten
        self._patches = patches
        self._updates = updates

    def count(self, name: str) -> dict[str, int]:
        """How many images of a class there are to erase: sealed ones, and files in the folders they come from."""
        sealed = self._vault.count(name, "forget") + self._vault.count(name, "holdout")
        return {"sealed": sealed, "originals": sum(count_images(folder, name) for folder in self._folders())}

    def remember(self, receipt: pb.Receipt) -> None:
        """Put the class on the list that every later base model has to forget too."""
        self._forgotten.add(
            Forgotten(
                name=receipt.forget_class,
                request_id=receipt.request_id,
                at=time.time(),
                method=receipt.method,
                ua_correct=receipt.ua_after.correct,
                ua_samples=receipt.ua_after.samples,
            )
        )

    def erase_images(self, name: str, counted: dict[str, int]) -> pb.Erasure:
        """Destroy the keys of the class's sealed images and remove its files; ``counted`` is from before a crash.

        Files that cannot be removed (a folder that is mounted read-only, say) are named: waiting for them
        would keep every later request waiting too.
        """
        self._vault.erase(name)
        erasure = pb.Erasure(samples=counted["sealed"])
        detail = "keys overwritten and removed, sealed files removed"
        if self._config.keep_originals:
            if counted["originals"]:
                detail += f"; {counted['originals']} original files kept by configuration (keep_originals)"
        else:
            problems: list[str] = []
            for folder in self._folders():
                try:
                    erase_originals(folder, name)
                except (OSError, VaultError) as error:
                    problems.append(str(error))
            left = sum(count_images(folder, name) for folder in self._folders())
            erasure.originals = max(0, counted["originals"] - left)
            if problems:
                log.error("images of %r are left: %s", name, "; ".join(problems))
                detail += f"; originals are left: {left} original files could NOT be removed: {problems[0]}"
        erasure.detail = detail
        return erasure

    def erase_old_model(self, shared_by: bytes | None = None) -> None:
        """Destroy the key of the model that was in use before; the new one gets a second copy in its place.

        Updates go with it, as they lead back to it; that of the job ``shared_by`` stays until it was handed out.
        """
        self._updates.destroy(but=shared_by)
        digest = self._store.spec()[1]
        other = self._store.other_slot()
        if not self._store.is_whole(other, digest):
            self._store.erase(other)
        self._store.drop_orphans()
        try:
            self._store.mirror()
        except (OSError, StoreError) as error:
            # The model in use is whole; only its spare copy is missing until the next job.
            log.warning("no second copy of the model could be made: %s", error)

    def sweep(self, unfinished: Sequence[Job]) -> None:
        """Destroy what no job needs any more, as after a damaged journal; for the start, with a whole model in use."""
        if not unfinished:
            self._store.erase(CANDIDATE)
        if not any(job.kind == MODEL_JOB for job in unfinished):
            self._store.erase(INCOMING)
        self._store.drop_orphans()
        needed = tuple(job.digest.hex()[:16] for job in unfinished)
        for name in self._ring.names():
            if name.startswith("checkpoint-") and not name.removeprefix("checkpoint-").startswith(needed):
                self._ring.destroy(name)
        for box in self._patches, self._updates:
            box.sweep()
        for digest in self._patches.jobs():
            if digest not in {job.digest for job in unfinished}:
                self._patches.destroy(digest)
        self._updates.expire()
        work = self._config.home / "work"
        for path in work.iterdir() if work.is_dir() else ():
            # What a worker left that was killed while it wrote has a name that begins with a dot.
            if not path.name.lstrip(".").startswith(needed):
                path.unlink(missing_ok=True)

    def clean_up(self, job_digest: bytes, *, shared: bool = False) -> None:
        """Drop a job's candidate, checkpoints and patch once it has ended, and its update unless that is ``shared``."""
        self._store.erase(CANDIDATE)
        self._patches.destroy(job_digest)
        if not shared:
            self._updates.drop(job_digest)
        self._drop_checkpoints(job_digest.hex()[:16])

    def _drop_checkpoints(self, job: str) -> None:
        for name in self._ring.names():
            if name.startswith(f"checkpoint-{job}"):
                self._ring.destroy(name)
        work = self._config.home / "work"
        if work.is_dir():
            # Also what a worker left that was killed while it wrote: such names begin with a dot.
            for path in work.iterdir():
                if job in path.name:
                    path.unlink(missing_ok=True)

    def _folders(self) -> list[Path]:
        return [self._config.samples] + ([self._config.holdout] if self._config.holdout is not None else [])
