"""Patches: what other devices' forgetting amounts to, for a device without images of its own.

A request names its patch by SHA-256; the bytes come beside the envelope and are unsigned. They are sealed before the
request is promised, and destroyed with the job, so that a crash in between goes on with them.
"""

import hashlib

from clue_agent.attempts import claimed_request
from clue_agent.boxes import MOST_PATCH_BYTES, Box
from clue_agent.errors import JournalWriteError, RequestRejectedError, SealError
from clue_agent.intake import Intake


class Patches:
    """Takes patches in; not to be called from two threads at once."""

    def __init__(self, box: Box, intake: Intake) -> None:
        self._box = box
        self._intake = intake

    def take_in(self, job: bytes, envelope: bytes, patch: bytes, *, again: bool = False) -> bool:
        """Seal the patch for a job; False if it needs one, and none came.

        True also where the request will be refused, for its patch or for anything else: nothing is kept then.
        ``again`` is that of :meth:`Intake.accept`.

        Raises:
            JournalWriteError: the disk is full.
            RequestHeldError: the request cannot be judged yet.
        """
        claimed = claimed_request(envelope)
        if claimed is None or not claimed.HasField("patch") or self._box.has(job):
            return True
        try:
            request = self._intake.accept(envelope, again=again).request
            if not self._intake.needs_patch(request):
                return True
        except RequestRejectedError:
            return True
        if not patch:
            return False
        if len(patch) <= MOST_PATCH_BYTES and hashlib.sha256(patch).digest() == request.patch.digest:
            try:
                self._box.put(job, patch)
            except (OSError, SealError) as error:
                raise JournalWriteError(f"cannot keep the patch: {error}") from None
        return True

    def destroy(self, job: bytes) -> None:
        """The job needs none any more."""
        self._box.destroy(job)
