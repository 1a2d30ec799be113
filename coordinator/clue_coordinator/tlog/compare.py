"""Does the log hold what the ledger holds? A log that is whole in itself may still be of other documents."""

from hashlib import sha256

from sqlalchemy import select
from sqlalchemy.orm import Session

from clue_coordinator.errors import LogDamagedError
from clue_coordinator.models import LogLeaf
from clue_coordinator.tlog.record import documents, is_started

# Of the other kinds the ledger does not keep every document.
_KEPT = {"request", "receipt", "enrolment"}


def compare_documents(session: Session) -> int:
    """Compare every document in the ledger with the leaves; returns how many there are.

    Raises:
        LogDamagedError: names the first document that is not in the log, or the first leaf without its document.
    """
    leaves: dict[tuple[str, str, bytes], int] = {}
    query = select(LogLeaf.id, LogLeaf.kind, LogLeaf.reference, LogLeaf.digest).where(LogLeaf.kind.in_(_KEPT))
    for index, kind, reference, digest in session.execute(query.execution_options(yield_per=4096)):
        leaves[kind, reference, bytes.fromhex(digest)] = index
    referred = {(kind, reference) for kind, reference, _ in leaves}
    found = 0
    left = dict(leaves)
    for document in documents(session):
        key = (document.kind, document.reference, sha256(document.body).digest())
        if key in leaves:
            left.pop(key, None)
            found += 1
        elif (document.kind, document.reference) in referred or not (
            # A request is logged when it starts.
            document.kind == "request" and not is_started(session, document.reference)
        ):
            raise LogDamagedError(
                f"the {document.kind} {document.reference} in the ledger is not the one in the log: "
                "it was changed, or came there on another way"
            )
    if left:
        (kind, reference, _), index = min(left.items(), key=lambda item: item[1])
        raise LogDamagedError(f"the document of leaf {index} ({kind} {reference}) is not in the ledger any more")
    return found
