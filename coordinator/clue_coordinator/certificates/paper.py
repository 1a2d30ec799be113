"""The page as a PDF, A4: one sheet for a small fleet."""

from fpdf import FPDF
from fpdf.enums import TableBordersLayout, XPos, YPos
from fpdf.fonts import FontFace

from clue_coordinator.certificates.page import Page, Section, Table

MAX_ROWS = 12
_MARGIN, _SIZE, _LINE = 13, 8.0, 3.7
# What the fonts that every reader has cannot show, in words that they can.
_PLAIN = {"\u201c": '"', "\u201d": '"', "\u2019": "'", "\u2192": "->"}
_SOFT, _RULE = 90, 190
_WIDTHS = {7: (15, 19, 12, 12, 20, 15, 13), 6: (17, 21, 21, 15, 19, 10)}


def to_pdf(page: Page) -> bytes:
    """The file. What its fonts cannot show (they know Latin letters) is a question mark; the HTML has it."""
    pdf = FPDF(format="A4")
    pdf.set_margin(_MARGIN)
    pdf.set_auto_page_break(True, margin=_MARGIN)
    pdf.set_title(_plain(page.title))
    pdf.set_lang("en")
    pdf.set_creator("clue-coordinator")
    pdf.add_page()
    pdf.set_font("Helvetica", "B", 15)
    _write(pdf, page.title, 7)
    pdf.set_font("Helvetica", "B", 9.5)
    _write(pdf, page.verdict, 5)
    for section in page.sections:
        _section(pdf, section)
    pdf.ln(1.5)
    pdf.set_text_color(_SOFT)
    pdf.set_font("Helvetica", "", 6.3)
    _write(pdf, page.foot, 3)
    return bytes(pdf.output())


def _section(pdf: FPDF, section: Section) -> None:
    pdf.ln(1.6)
    pdf.set_font("Helvetica", "B", 9.5)
    _write(pdf, section.title, 4.8)
    pdf.set_draw_color(_RULE)
    pdf.line(_MARGIN, pdf.get_y(), pdf.w - _MARGIN, pdf.get_y())
    pdf.ln(0.8)
    pdf.set_font("Helvetica", "", _SIZE)
    for sentence in section.sentences:
        _write(pdf, sentence if len(section.sentences) < 3 else f"- {sentence}", _LINE)
    for name, value in section.facts:
        pdf.set_text_color(_SOFT)
        pdf.cell(34, _LINE, _plain(name))
        pdf.set_text_color(0)
        _write(pdf, value, _LINE)
    if section.table is not None and section.table.rows:
        _table(pdf, section.table)


def _table(pdf: FPDF, found: Table) -> None:
    rows = found.rows[:MAX_ROWS]
    pdf.set_font("Helvetica", "", 7)
    with pdf.table(
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        line_height=3.4,
        padding=(0.3, 0.8),
        text_align="LEFT",
        col_widths=_WIDTHS[len(found.heads)],
        headings_style=FontFace(emphasis="", color=_SOFT),
    ) as table:
        for row in (found.heads, *rows):
            line = table.row()
            for cell in row:
                line.cell(_plain(cell))
    if len(rows) < len(found.rows):
        pdf.ln(0.6)
        _write(
            pdf, f"{len(found.rows) - len(rows)} more devices stand in certificate.html and certificate.json.", _LINE
        )


def _write(pdf: FPDF, text: str, height: float) -> None:
    pdf.multi_cell(0, height, _plain(text), new_x=XPos.LMARGIN, new_y=YPos.NEXT, align="L")


def _plain(text: str) -> str:
    for fancy, plain in _PLAIN.items():
        text = text.replace(fancy, plain)
    return text.encode("latin-1", errors="replace").decode("latin-1")
