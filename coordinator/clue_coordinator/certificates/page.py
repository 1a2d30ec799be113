"""What a certificate says to people, in the words of Article 17 of the GDPR: the same text for every form of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from clue_protocol.certificate import Certificate, VerifiedCertificate, VerifiedDevice, verify_certificate
from clue_protocol.tlog import NoteKey
from clue_protocol.v1 import forget_pb2 as pb

MAX_ROWS = 200


@dataclass(frozen=True)
class Table:
    """Column heads and rows, all text; ``left_out`` says what of it stands in the JSON only."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: sentences, then facts by name, then a table."""

    title: str
    sentences: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """The whole page. ``good`` is true if the class was forgotten on every device."""

    title: str
    verdict: str
    good: bool
    sections: tuple[Section, ...]
    foot: str


def checked_page(data: bytes, log: Sequence[NoteKey]) -> tuple[VerifiedCertificate, Page]:
    """The page of a certificate that we are about to hand out; CertificateError if it does not verify.

    What is written must be true by its own root; by which root is for the reader to say.
    """
    found = verify_certificate(data, Certificate.from_bytes(data).roots[-1:], log=log)
    return found, page_of(found, data)


def page_of(found: VerifiedCertificate, data: bytes) -> Page:
    """The page of a verified certificate whose file is ``data``."""
    total, name = len(found.devices), found.request.forget_class
    good = found.erased == total and total > 0 and not found.statement.is_open
    verdict = f"{found.erased} of {_devices(total)} in fleet {found.statement.fleet} have forgotten “{name}”."
    if found.statement.is_open:
        verdict += " The request is still open: this certificate is partial."
    elif not good:
        verdict += f" On {_devices(total - found.erased)} the erasure is not shown."
    digest = sha256(data).hexdigest()
    return Page(
        title="Certificate of erasure",
        verdict=verdict,
        good=good,
        sections=(_asked(found), _done(found), _checked(found), _limits(found), _proof(found, digest)),
        foot=f"Request {found.statement.request_id} · SHA-256 of certificate.json {digest}",
    )


def _asked(found: VerifiedCertificate) -> Section:
    request, statement = found.request, found.statement
    needed = found.root.root.fleets[statement.fleet].request
    facts = (
        ("Class to erase", request.forget_class),
        ("Fleet", statement.fleet),
        ("Asked on", _day(statement.created_at)),
        ("Asked with the token", statement.requested_by),
        (
            "Allowed by",
            f"{len(found.approvers)} signature(s); {needed.threshold} of {len(needed.keys)} key(s) must sign",
        ),
        (
            "Accepted only if",
            f"UA is at most {_percent(request.policy.max_ua)} and RA falls by at most "
            f"{100 * request.policy.max_ra_drop:g} points, on the device’s own images",
        ),
        ("Request", statement.request_id),
    )
    words = (
        "Erasure of personal data in the sense of Article 17(1) of Regulation (EU) 2016/679 (GDPR) was "
        "asked for: what the "
        "image classifiers of this fleet know of one class, and the images of it that the devices had "
        "for that purpose.",
    )
    return Section("What was asked", words, facts)


def _done(found: VerifiedCertificate) -> Section:
    order = sorted(found.devices, key=lambda device: (device.said.state == "SUCCEEDED", device.said.device))
    shown = order[:MAX_ROWS]
    rows = tuple(_done_row(device) for device in shown)
    counts = Counter(device.said.state for device in found.devices)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    silent = sum(not device.receipts for device in found.devices)
    words = [f"{_devices(len(found.devices))} were meant by the request; the coordinator states: {states}."]
    if silent:
        words.append(f"{_devices(silent)} sent no receipt: nothing is shown there, and each is listed.")
    left = f"{len(order) - len(shown)} more devices stand in certificate.json." if len(order) > len(shown) else ""
    heads = ("Device", "Outcome", "Method", "Images used", "Erased", "Finished (UTC)", "Energy")
    return Section("What was done, on which devices", tuple(words), (), Table(heads, rows, left))


def _done_row(device: VerifiedDevice) -> tuple[str, ...]:
    said, last = device.said, device.last
    if last is None:
        why = said.reason or said.detail
        return (said.device, f"{said.state}{f': {why}' if why else ''}; no receipt", "", "", "", "", "")
    outcome = said.state if said.state == "SUCCEEDED" else f"{said.state}: {said.reason or last.detail}"
    if last.outcome != pb.OUTCOME_SUCCEEDED:
        return (said.device, outcome, last.method, "", "nothing", _time(last), _energy(last))
    samples = f"{last.forget_samples}" if last.forget_samples else "none (patch)"
    return (said.device, outcome, last.method, samples, _erased(last), _time(last), _energy(last))


def _erased(receipt: pb.Receipt) -> str:
    parts = []
    if receipt.erasure.old_model:
        parts.append("old model")
    if receipt.erasure.samples or receipt.erasure.originals:
        parts.append(f"{max(receipt.erasure.samples, receipt.erasure.originals)} images")
    return ", ".join(parts) or "see receipt"


def _checked(found: VerifiedCertificate) -> Section:
    order = [device for device in found.devices if device.last is not None and device.last.HasField("ua_after")]
    shown = order[:MAX_ROWS]
    rows = []
    for device in shown:
        last = device.last
        assert last is not None  # noqa: S101
        digests = f"{last.model_digest_before[:8]} → {last.model_digest_after[:8]}"
        if last.model_digest_before == last.model_digest_after:
            digests = f"{last.model_digest_after[:8]}, unchanged"
        ua = f"{_share(last.ua_before)} → {_share(last.ua_after)}"
        ra = f"{_share(last.ra_before)} → {_share(last.ra_after)}"
        counts = f"{last.ua_after.samples} / {last.ra_after.samples}"
        rows.append((device.said.device, ua, ra, counts, digests, last.software_version))
    left = f"{len(order) - len(shown)} more devices stand in certificate.json." if len(order) > len(shown) else ""
    words = (
        "Each device measured its model before and after on images that it keeps for that and never "
        "learns from: UA is the "
        "share of images of the erased class that are still recognised, RA that of all other classes. A model that did "
        "not meet the request’s bounds was not put to use.",
    )
    heads = ("Device", "UA", "RA", "Images (UA / RA)", "Model", "Software")
    return Section("How it was checked", words, (), Table(heads, tuple(rows), left))


def _limits(found: VerifiedCertificate) -> Section:
    counts = [device.last.ua_after.samples for device in found.devices if device.last and device.last.ua_after.samples]
    few, many = (min(counts), max(counts)) if counts else (0, 0)
    sizes = f" (here {few if few == many else f'{few} to {many}'} images a device)" if counts else ""
    return Section(
        "What this does and does not prove",
        (
            "It proves who asked for the erasure and who allowed it, that each receipt is signed with "
            "the key that the named "
            "device was enrolled with, that request and receipts are in a log that others can check, and that no "
            "device of the request is missing from the coordinator’s statement, which is in that log too.",
            "It does not prove that the devices told the truth. A receipt is the device’s own word; "
            "whoever controls a device, "
            "or its key, can sign what was not done.",
            "The method is approximate unlearning, not training from scratch without the data. The new "
            "model is made to behave as "
            "if it had not learned the class, within the bounds above. No measurement shows that nothing of the "
            "images can be inferred from its parameters, and a vector of parameters alone proves nothing "
            "about its origin.",
            f"UA is measured on a sample{sizes}. Zero errors in n images still allow a true share of about 3/n (95 %).",
            "It says nothing of copies outside of this fleet: models or images that were exported, "
            "shared or backed up before, "
            "and models that others made from them.",
            "Whether Article 17 is met in law, and whether an exception of Article 17(3) applies, is for "
            "the controller to judge.",
        ),
    )


def _proof(found: VerifiedCertificate, digest: str) -> Section:
    checkpoint = found.checkpoint
    facts = [
        ("Installation", found.root.root.installation),
        ("Root", f"version {found.root.root.version}, SHA-256 {found.root.digest.hex()}"),
        ("Log", f"{checkpoint.origin}, {checkpoint.size} leaves, root hash {checkpoint.root.hex()}"),
        ("Witnesses", ", ".join(found.witnesses) or "none: that there is one log only is the coordinator’s word"),
        ("certificate.json", f"SHA-256 {digest}"),
    ]
    words = (
        "This page is a copy for reading. The certificate is certificate.json; with the installation’s "
        "root from a source that you "
        "trust, it is checked without network: clue verify-certificate certificate.json --root root.json",
    )
    return Section("How to verify", words, tuple(facts))


def _devices(count: int) -> str:
    return f"{count:,} device" + ("" if count == 1 else "s")


def _share(accuracy: pb.Accuracy) -> str:
    return _percent(accuracy.correct / accuracy.samples) if accuracy.samples else "not measured"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _energy(receipt: pb.Receipt) -> str:
    if not receipt.HasField("energy") or not receipt.energy.source:
        return ""
    source = "estimated" if receipt.energy.source == "estimated" else receipt.energy.source
    return f"{receipt.energy.joules:.0f} J ({source})"


def _time(receipt: pb.Receipt) -> str:
    # A device may sign any number as its time.
    if not 0 < receipt.finished_at.seconds < 1 << 35:
        return ""
    return datetime.fromtimestamp(receipt.finished_at.seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(min(seconds, 1 << 35), UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "not yet"
