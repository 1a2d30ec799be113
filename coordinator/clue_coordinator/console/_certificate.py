"""The erasure certificate of a request, to be downloaded."""

from clue_coordinator import certificates
from clue_coordinator.certificates.page import checked_page
from clue_coordinator.certificates.paper import to_pdf
from clue_coordinator.certificates.web import to_html
from clue_coordinator.config import CoordinatorConfig
from clue_coordinator.ledger import Ledger
from clue_coordinator.tlog.keys import load_log_keys

# Form -> media type.
FORMS = {"json": "application/json", "html": "text/html; charset=utf-8", "pdf": "application/pdf"}


def certificate(config: CoordinatorConfig, ledger: Ledger, request_id: str, form: str) -> bytes:
    """The file in one of :data:`FORMS`, as ``clue-coordinator certificate`` writes it.

    Raises:
        ConflictError: the request is not closed, or never started.
        CoordinatorError, ProtocolError: it cannot be made, or does not verify.
    """
    keys = load_log_keys(config)
    data = certificates.make(ledger, keys, request_id)
    if form == "json":
        return data
    _, page = checked_page(data, keys.keys)
    return to_html(page).encode() if form == "html" else bytes(to_pdf(page))
