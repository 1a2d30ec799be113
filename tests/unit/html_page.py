"""Reads a report as a browser would, and says what is wrong with it as a page that stands alone."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "br", "img", "hr", "input", "link"}


@dataclass
class Table:
    caption: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


class Reader(HTMLParser):
    """The text, tables and attributes of a page; tags that do not match are an error."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.tables: list[Table] = []
        self.headings: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.alternatives: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "svg":
            assert found["role"] == "img"
            self.alternatives.append(found["aria-label"] or "")
        if tag == "img":
            self.alternatives.append(found["alt"] or "")
        if tag == "table":
            self.tables.append(Table())
        if tag == "th":
            assert found["scope"] in ("row", "col")
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("td", "th"):
            self.tables[-1].rows[-1].append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((tag, ""))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text.append(data)
        for tag in reversed(self.open):
            if tag in ("td", "th"):
                self.tables[-1].rows[-1][-1] += data
                return
            if tag == "caption":
                self.tables[-1].caption += data
                return
            if re.fullmatch("h[1-6]", tag):
                self.headings[-1] = (tag, self.headings[-1][1] + data)
                return


def read(text: str) -> Reader:
    """Parse a report and check what every report promises."""
    page = Reader()
    page.feed(text)
    page.close()
    assert text.startswith("<!DOCTYPE html>")
    assert page.open == []
    assert "//" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)  # no URL of any kind
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "iframe", "object", "form"}
    assert "<script" not in text.lower()
    assert "mathdefault" not in text  # matplotlib's own labels, which nobody typesets
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,"))
            assert not value.startswith("#") or value[1:] in page.ids
        for used in re.findall(r"url\(#([^)]+)\)", value):
            assert used in page.ids
        for used in re.findall(r"var\((--[a-z-]+)\)", value):
            assert text.count(f"{used}:") >= 2  # on light pages and on dark ones
        assert not re.search("#[0-9a-f]{2}fe[0-9a-f]{2}", value), "a stand-in was left"
    assert len(page.ids) == len(set(page.ids))
    assert [tag for tag, _ in page.headings].count("h1") == 1
    assert all(words for words in page.alternatives)
    for table in page.tables:
        assert table.caption.strip()
        columns, *rows = table.rows
        table.columns, table.rows = columns, rows
        assert all(len(row) == len(columns) for row in rows)
    assert "@media print" in text
    assert "prefers-color-scheme: dark" in text
    return page
