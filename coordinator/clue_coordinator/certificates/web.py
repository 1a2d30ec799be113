"""The page as one HTML file: no scripts, nothing from elsewhere; light or dark as the reader's screen is."""

from importlib.resources import files

from jinja2 import Environment

from clue_coordinator.certificates.page import Page


def to_html(page: Page) -> str:
    """The file's text."""
    # Every text is escaped: names of classes and what devices say may hold anything.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    source = (files("clue_coordinator.certificates") / "certificate.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)
