"""A ledger, its log and its roots, as certificates are made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fleet_ledger import SIGNER, Fleet
from securesystemslib.signer import CryptoSigner, Signer
from sqlalchemy.orm import Session

from clue_coordinator import certificates, roots, tlog
from clue_coordinator.home_keys import HomeKeys
from clue_coordinator.tlog.keys import LogKeys
from clue_protocol.certificate import log_name
from clue_protocol.certificate.trusted import read_root
from clue_protocol.tlog import LOG_KEY, WITNESS_KEY, NoteKey, cosign_checkpoint
from clue_protocol.trust import ROOT_TYPE, FleetTrust, Role, Root, add_signature, successor

HOLDER, TIMER, LOG_SIGNER, WITNESS_SIGNER = (CryptoSigner.generate_ed25519() for _ in range(4))
INSTALLATION = "ab" * 16
SECOND = 10**9
LOG = NoteKey.of(log_name(INSTALLATION), LOG_KEY, LOG_SIGNER.public_key)
WITNESS = NoteKey.of("witness.example/w", WITNESS_KEY, WITNESS_SIGNER.public_key)


KEYS = LogKeys(LOG_SIGNER, (LOG,), (WITNESS,))
LOG_ROLE = Role((LOG_SIGNER.public_key,))


def first_root(log: Role | None, now: float, installation: str = INSTALLATION, request: Signer = SIGNER) -> bytes:
    root = Root(
        installation=installation,
        version=1,
        issued_ns=int((now - 1000) * SECOND),
        expires_ns=int((now + 1e7) * SECOND),
        root=Role((HOLDER.public_key,)),
        timestamp=Role((TIMER.public_key,)),
        fleets={"yard": FleetTrust(request=Role((request.public_key,)))},
        log=log,
    )
    return add_signature(root.to_envelope(), ROOT_TYPE, HOLDER)


@dataclass
class Certified:
    """Fleet ``yard`` whose request key is SIGNER, and whose log key is in the root."""

    fleet: Fleet
    home: HomeKeys
    keys: LogKeys = KEYS
    roots: list[bytes] = field(default_factory=list)

    @classmethod
    def make(cls, where: Path | str, devices: int, *, log_in_root: bool = True) -> "Certified":
        home = HomeKeys(SIGNER, (TIMER,), HOLDER, log=KEYS if log_in_root else None)
        fleet = Fleet.make(where, devices, home)
        with fleet.ledger.read() as session:
            return cls(fleet, home, roots=roots.since(session, 0))

    def chain(self, _: Session) -> Sequence[bytes]:
        return self.roots

    def rotate(self) -> None:
        """A further root, a second later, with nothing changed."""
        last = read_root(self.roots[-1])
        self.fleet.now += 1
        issued = int(self.fleet.now * SECOND)
        root = successor(last, issued, issued + 10**7 * SECOND)
        self.roots.append(add_signature(root.to_envelope(), ROOT_TYPE, HOLDER))

    def cosign(self) -> None:
        """The witness signs the newest checkpoint."""
        with self.fleet.ledger.write() as session:
            note = cosign_checkpoint(tlog.note_of_size(session), WITNESS.name, WITNESS_SIGNER, at=5)
            tlog.add_cosignature(session, note, LOG, WITNESS, 1.0)

    def certificate(self, request_id: str, *, partial: bool = False) -> bytes:
        return certificates.make(self.fleet.ledger, self.keys, request_id, partial=partial, roots=self.chain)
