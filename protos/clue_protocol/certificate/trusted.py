"""From the root that a verifier has to the keys that a certificate must be signed with."""

from collections.abc import Sequence
from functools import lru_cache

from securesystemslib.signer import Key

from clue_protocol.certificate.errors import CertificateError
from clue_protocol.tlog import LOG_KEY, NoteKey
from clue_protocol.trust import ROOT_TYPE, Root, TrustedRoot, next_root, pin_root
from clue_protocol.trust.envelopes import payload_digest, read_envelope


def log_name(installation: str) -> str:
    """Origin of the log of an installation."""
    return f"clue/{installation}"


def log_keys(chain: Sequence[TrustedRoot]) -> tuple[NoteKey, ...]:
    """Keys that may have signed the log: of any root of the chain, unless the last one has revoked them."""
    last = chain[-1].root
    gone = {entry.key.keyid for entry in last.revoked}
    found = {key.keyid: key for one in chain for key in _log_role(one.root) if key.keyid not in gone}
    return tuple(NoteKey.of(log_name(last.installation), LOG_KEY, key) for key in found.values())


@lru_cache(maxsize=64)
def read_root(envelope: bytes) -> TrustedRoot:
    """A root that somebody trusts already; TrustError or EnvelopeError if it is none."""
    return pin_root(envelope, payload_digest(read_envelope(envelope, ROOT_TYPE)))


def trusted_chain(envelopes: Sequence[bytes], anchors: Sequence[bytes]) -> tuple[TrustedRoot, ...]:
    """The certificate's roots, verified one by the other and by a root that the verifier trusts.

    Args:
        envelopes: of the certificate, each the successor of the one before.
        anchors: what the verifier trusts: a root of any version in the chain, or roots that go on from its end.

    Raises:
        CertificateError: there is none, or none of ``anchors`` vouches for them.
        TrustError, EnvelopeError: a root is none, or does not follow from the one before.
    """
    if not envelopes:
        raise CertificateError("the certificate holds no root")
    chain = [read_root(envelopes[0])]
    for envelope in envelopes[1:]:
        chain.append(next_root(chain[-1], envelope))
    known = {one.digest for one in chain}
    trusted = sorted((read_root(anchor) for anchor in anchors), key=lambda one: one.root.version)
    if any(one.digest in known for one in trusted):
        return tuple(chain)
    end = chain[-1]
    later = [one for one in trusted if one.root.version > end.root.version]
    if not later or trusted[0].root.installation != end.root.installation:
        raise CertificateError(
            f"the certificate's roots (version {chain[0].root.version} to {end.root.version}) are not those of the "
            f"root that you trust (version {trusted[0].root.version if trusted else 'none'})"
        )
    for one in later:
        if one.root.version != end.root.version + 1:
            raise CertificateError(
                f"the certificate's roots end with version {end.root.version}, the one that you trust is version "
                f"{one.root.version}: give the versions between them too"
            )
        end = next_root(end, one.envelope)
    return tuple(chain)


def _log_role(root: Root) -> Sequence[Key]:
    return root.log.keys if root.log is not None else ()
