"""``clue-coordinator certificate``: what shows a person, or a regulator, that a class was forgotten."""

from pathlib import Path
from typing import Annotated

import typer

from clue_coordinator.cli_options import Home, operator_client
from clue_coordinator.cli_requests import RequestId
from clue_coordinator.errors import CoordinatorError, UsageError

_FILES = ("certificate.json", "certificate.html", "certificate.pdf")


def certificate(
    request_id: RequestId,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the three files.")],
    partial: Annotated[bool, typer.Option("--partial", help="Also while devices may still answer.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace certificate files that are there.")] = False,
    home: Home = None,
) -> None:
    """Write the erasure certificate of a request as JSON, HTML and PDF.

    The JSON is the certificate: 'clue verify-certificate' checks it against the root, without a coordinator.
    """
    from clue_coordinator.certificates.page import checked_page
    from clue_coordinator.certificates.paper import to_pdf
    from clue_coordinator.certificates.web import to_html
    from clue_protocol.tlog import NoteKey

    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is not a folder")
    there = [name for name in _FILES if (out / name).exists()]
    if there and not force:
        raise UsageError(f"--out {out} holds {there[0]} already: choose another folder, or --force")
    with operator_client(home) as client:
        data = client.certificate(request_id, partial=partial)
        log = [NoteKey.from_text(text) for text in client.log().keys]
    verified, page = checked_page(data, log)
    contents = (data, to_html(page).encode(), to_pdf(page))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in zip(_FILES, contents, strict=True):
            part = out / f".{name}.new"
            part.write_bytes(content)
            part.replace(out / name)
    except OSError as error:
        raise CoordinatorError(f"cannot write into {out}: {error.strerror}") from None
    print(
        f"{out}: {verified.erased} of {len(verified.devices)} device(s) have forgotten "
        f"'{verified.request.forget_class}'"
    )
    print(f"check it: clue verify-certificate {out / _FILES[0]} --root root.json")
