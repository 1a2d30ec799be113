"""Is this request one that this device will carry out? Decided before anything is touched."""

from contextlib import suppress

from clue.spec import unknown_class_message
from clue_agent.boxes import MOST_PATCH_BYTES, Box
from clue_agent.config import AgentConfig
from clue_agent.errors import RequestRejectedError, StoreError
from clue_agent.samples import count_images
from clue_agent.store import ModelStore
from clue_agent.trusting import DeviceTrust
from clue_agent.vault import Vault
from clue_agent.verify import open_request
from clue_protocol.trust import VerifiedRequest
from clue_protocol.v1 import forget_pb2 as pb


class Intake:
    """Checks requests of one device against what it trusts, its model and its images."""

    def __init__(self, config: AgentConfig, trust: DeviceTrust, store: ModelStore, vault: Vault, patches: Box) -> None:
        self._config = config
        self._trust = trust
        self._store = store
        self._vault = vault
        self._patches = patches

    def accept(self, envelope: bytes, job: bytes | None = None, *, again: bool = False) -> VerifiedRequest:
        """The request in an envelope, if it may be promised. Nothing is written.

        Args:
            envelope: as it was delivered.
            job: digest of its job: the patch that it needs must have come. Without, that is not looked at.
            again: the journal knows that this very request was accepted before.

        Raises:
            RequestRejectedError: why it is refused.
            RequestHeldError: that cannot be said yet.
        """
        verified = open_request(envelope, self._trust, again=again)
        self._check(verified, job)
        return verified

    def hold(self, envelope: bytes, *, again: bool) -> None:
        """RequestHeldError if the request cannot be judged yet; what is to be refused passes here."""
        with suppress(RequestRejectedError):
            open_request(envelope, self._trust, again=again)

    def _check(self, verified: VerifiedRequest, job: bytes | None) -> None:
        request = verified.request
        try:
            spec, model = self._store.spec()
        except StoreError as error:
            raise RequestRejectedError(pb.REASON_BAD_MODEL, str(error)) from None
        name = request.forget_class
        # A journal may be lost after the work was done: the very same request is then found done.
        if not (verified.is_known and name in spec.forgotten):
            check_model(request, model)
        if name not in spec.classes:
            raise RequestRejectedError(pb.REASON_UNKNOWN_CLASS, unknown_class_message(name, spec.classes))
        if name in spec.forgotten:
            return
        if request.HasField("patch"):
            self._check_patch(request.patch, model)
        else:
            self._check_images(name)
        retained = [other for other in spec.classes if other != name and other not in spec.forgotten]
        if not any(self._has_holdout(other) for other in retained):
            raise RequestRejectedError(
                pb.REASON_NO_HOLDOUT, "no holdout image of a retained class: damage could not be measured"
            )
        if request.HasField("patch") and job is not None and not self._patches.has(job):
            raise RequestRejectedError(
                pb.REASON_BAD_PATCH,
                "the patch that came is not the one that the request names by its SHA-256, or is larger than "
                f"{MOST_PATCH_BYTES >> 20} MiB",
            )

    def needs_patch(self, request: pb.ForgetRequest) -> bool:
        """True unless the request goes without a patch, or there is nothing left to forget."""
        return request.HasField("patch") and request.forget_class not in self._store.spec()[0].forgotten

    def _check_patch(self, patch: pb.PatchReference, model: str) -> None:
        if len(patch.digest) != 32:
            raise RequestRejectedError(pb.REASON_BAD_PATCH, "the request does not name its patch by a SHA-256 digest")
        if patch.base_model_digest != model:
            raise RequestRejectedError(
                pb.REASON_BAD_PATCH,
                f"the patch changes the model {patch.base_model_digest[:16]!r}, this device has {model[:16]!r}",
            )

    def _check_images(self, name: str) -> None:
        if not self._has_samples(name):
            raise RequestRejectedError(
                pb.REASON_NO_FORGET_SAMPLES,
                f"this device has no sample of {name!r}, neither sealed nor in {self._config.samples.name}/{name}",
            )
        if not self._has_holdout(name):
            raise RequestRejectedError(
                pb.REASON_NO_HOLDOUT, f"no holdout image of {name!r}: forgetting could not be measured"
            )

    def _has_samples(self, name: str) -> bool:
        # In this order: an image on its way is in the vault before it leaves the folder.
        return count_images(self._config.samples, name) > 0 or self._vault.count(name, "forget") > 0

    def _has_holdout(self, name: str) -> bool:
        if self._vault.count(name, "holdout") > 0:
            return True
        if self._config.holdout is not None and count_images(self._config.holdout, name) > 0:
            return True
        # What waits in the folder is split when it is taken in; with so few, none may fall to the holdout.
        return self._config.vault.holdout_share > 0 and count_images(self._config.samples, name) >= 20


def check_model(request: pb.ForgetRequest, digest: str) -> None:
    """That a request which names the model that is to forget means the one in use; RequestRejectedError otherwise."""
    if request.model_digest and request.model_digest != digest:
        raise RequestRejectedError(
            pb.REASON_WRONG_MODEL,
            f"the request is for the model {request.model_digest[:16]!r}, this device has {digest[:16]!r}",
        )
