"""Fill in and sign receipts."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer

import clue
from clue_protocol.envelope import RECEIPT_TYPE, sign_message
from clue_protocol.files import private_folder, write_atomic
from clue_protocol.v1 import forget_pb2 as pb

MAX_DETAIL = 500


def refusal(
    request_id: str, device_id: str, fleet: str, digest: bytes, reason: int, detail: str, model: str, attempt: int
) -> pb.Receipt:
    """A receipt for a request that was not worked on."""
    receipt = pb.Receipt(
        request_id=request_id,
        device_id=device_id,
        fleet=fleet,
        outcome=pb.OUTCOME_REJECTED,
        reason=pb.Reason.ValueType(reason),
        detail=one_line(detail),
        request_digest=digest,
        model_digest_before=model,
        model_digest_after=model,
        software_version=clue.__version__,
        attempt=attempt,
    )
    receipt.started_at.GetCurrentTime()
    receipt.finished_at.GetCurrentTime()
    return receipt


def begin(request: pb.ForgetRequest, device_id: str, fleet: str, digest: bytes, model: str, attempt: int) -> pb.Receipt:
    """A receipt for a request that is worked on, before anything is known."""
    return pb.Receipt(
        request_id=request.request_id,
        device_id=device_id,
        fleet=fleet,
        request_digest=digest,
        forget_class=request.forget_class,
        seed=request.seed,
        model_digest_before=model,
        model_digest_after=model,
        software_version=clue.__version__,
        attempt=attempt,
    )


def add_result(receipt: pb.Receipt, result: dict[str, Any]) -> None:
    """Copy what the worker measured into ``receipt``."""
    for name in ("ua_before", "ua_after", "ra_before", "ra_after"):
        if name in result:
            getattr(receipt, name).CopyFrom(pb.Accuracy(**result[name]))
    if "method" in result:
        receipt.method = result["method"]
        receipt.hyperparameters_json = json.dumps(result["hyperparameters"], sort_keys=True)
        receipt.unlearning_seconds = result["seconds"]
        known = pb.Energy.DESCRIPTOR.fields_by_name  # a reading says more than a receipt carries
        receipt.energy.CopyFrom(pb.Energy(**{name: value for name, value in result["energy"].items() if name in known}))
        receipt.peak_memory_bytes = result["peak_memory_bytes"]
        receipt.forget_samples = result["samples"]


def commit_to_samples(digests: list[str], opening: Path) -> bytes:
    """SHA-256 over a random salt and the sorted SHA-256 (hex) of each image; salt and digests go to ``opening``.

    With that file, which stays on the device, the owner can later prove which images were used; without
    it the commitment tells nobody whether a known image was among them.
    """
    salt = os.urandom(32)
    private_folder(opening.parent)
    body = {"salt": salt.hex(), "samples_sha256": sorted(digests)}
    write_atomic(opening, json.dumps(body).encode(), mode=0o600)
    return hashlib.sha256(salt + b"".join(bytes.fromhex(digest) for digest in sorted(digests))).digest()


def sign_receipt(receipt: pb.Receipt, signer: Signer) -> bytes:
    """The envelope of a receipt, as JSON bytes."""
    return sign_message(receipt, RECEIPT_TYPE, [signer])


def one_line(text: str) -> str:
    """``text`` on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else line[: MAX_DETAIL - 3] + "..."
