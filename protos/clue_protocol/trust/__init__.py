"""Who may make a device forget: roles, thresholds, rotation and signed time, without trust in coordinator or clock.

The workflow, each step a function without side effects:

1. Key holders sign a :class:`Root` one after the other (:func:`add_signature`). A device is told the digest of one
   when it is enrolled (:func:`pin_root`) and follows every later one from there (:func:`walk_chain`).
2. The holder of a timestamp key attests the time (:func:`attest_time`), on a schedule and in answer to a device's
   :class:`Challenge`; the device checks it (:func:`open_attestation`) and knows the time as an interval
   (:class:`TimeKnowledge`).
3. Approvers sign a request (:func:`add_signature`); the coordinator counts (:func:`check_approvals`); the device judges
   (:func:`verify_request`).
4. What was accepted goes into the :class:`TrustState`, on the disk (:func:`save_state`) before anything is done.

All cryptography is securesystemslib's and that of the ``cryptography`` package.
"""

from clue_protocol.trust.attestation import AttestedTime, Challenge, attest_time, open_attestation
from clue_protocol.trust.chain import TrustedRoot, next_root, pin_root, successor, walk_chain
from clue_protocol.trust.clock import ClockReading, TimeKnowledge, Verdict, judge_expiry
from clue_protocol.trust.envelopes import ROOT_TYPE, TIME_TYPE, add_signature, merge_signatures, unsigned
from clue_protocol.trust.errors import TrustError
from clue_protocol.trust.request import VerifiedRequest, check_approvals, verify_request
from clue_protocol.trust.root import FleetTrust, Revocation, Role, Root, new_installation_id
from clue_protocol.trust.signers import create_encrypted_key, load_encrypted_key, open_signer
from clue_protocol.trust.state import FleetMark, TrustState, load_state, save_state

__all__ = [
    "ROOT_TYPE",
    "TIME_TYPE",
    "AttestedTime",
    "Challenge",
    "ClockReading",
    "FleetMark",
    "FleetTrust",
    "Revocation",
    "Role",
    "Root",
    "TimeKnowledge",
    "TrustError",
    "TrustState",
    "TrustedRoot",
    "Verdict",
    "VerifiedRequest",
    "add_signature",
    "attest_time",
    "check_approvals",
    "create_encrypted_key",
    "judge_expiry",
    "load_encrypted_key",
    "load_state",
    "merge_signatures",
    "new_installation_id",
    "next_root",
    "open_attestation",
    "open_signer",
    "pin_root",
    "save_state",
    "successor",
    "unsigned",
    "verify_request",
    "walk_chain",
]
