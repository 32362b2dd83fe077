"""The document of a ceremony as PDF, made by reportlab: the same transcript always gives the same file.

Its letters are those of Roboto: Latin, Greek and Cyrillic. A text with another letter is refused, never printed wrong.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib import resources
from typing import Final

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, KeepTogether, LongTable, Paragraph, SimpleDocTemplate, TableStyle

from hsmkme.ceremony.document import Document, Section
from hsmkme.errors import OperatorFault

_REGULAR, _STRONG = "Roboto-Regular", "Roboto-Bold"
_TEXT: Final = ParagraphStyle("text", fontName=_REGULAR, fontSize=9, leading=12, splitLongWords=1)
_BOLD: Final = ParagraphStyle("bold", _TEXT, fontName=_STRONG)
_HEADING: Final = ParagraphStyle(
    "heading", _BOLD, fontSize=11, leading=14, spaceBefore=10, spaceAfter=4, keepWithNext=1
)
_TITLE: Final = ParagraphStyle("title", _BOLD, fontSize=16, leading=20)
_ABOVE: Final = ParagraphStyle("above", _TEXT, spaceAfter=2 * mm, keepWithNext=1)
_MARGIN: Final = 18 * mm
_WIDTH: Final = A4[0] - 2 * _MARGIN
_PARTS: Final = {"What": [0.28, 0.42, 0.3], "When": [0.24, 0.14, 0.62]}
"""Of the width of the page, by the title of the first column."""
_SIGNATURE_HEIGHT: Final = 14 * mm
_GRID: Final = TableStyle([("GRID", (0, 0), (-1, -1), 0.4, colors.grey), ("VALIGN", (0, 0), (-1, -1), "TOP")])


def pdf(content: Document) -> bytes:
    """The file; raises `OperatorFault` for a letter that the font has not."""
    for text in _texts(content):
        _require_letters(text)
    output = io.BytesIO()
    template = SimpleDocTemplate(
        output, pagesize=A4, leftMargin=_MARGIN, rightMargin=_MARGIN, title=content.title, invariant=1
    )
    story: list[Flowable] = [Paragraph(escape(content.title), _TITLE)]
    for section in content.sections:
        story += _flowables(section)
    template.build(story, onFirstPage=_number, onLaterPages=_number)
    return output.getvalue()


@cache
def _letters() -> frozenset[int]:
    """The code points that both fonts have, which are ready to be used from here on."""
    known = []
    for name in (_REGULAR, _STRONG):
        font = TTFont(name, str(resources.files("font_roboto") / "files" / f"{name}.ttf"))
        pdfmetrics.registerFont(font)
        known.append(frozenset(font.face.charToGlyph))
    return known[0] & known[1]


def _texts(content: Document) -> Iterator[str]:
    yield content.title
    for section in content.sections:
        yield from (section.title, *section.paragraphs, *section.header)
        yield from (cell for row in section.rows for cell in row)


def _require_letters(text: str) -> None:
    for letter in text:
        if not letter.isspace() and ord(letter) not in _letters():
            called = unicodedata.name(letter, "a letter without a name")
            raise OperatorFault(
                f"the PDF cannot show {letter!r} (U+{ord(letter):04X}, {called}) of {text!r}: print it as HTML, --html"
            )


def _flowables(section: Section) -> list[Flowable]:
    parts: list[Flowable] = [Paragraph(escape(section.title), _HEADING)]
    parts += [Paragraph(escape(text), _ABOVE if section.rows else _TEXT) for text in section.paragraphs]
    if section.rows:
        parts.append(_table(section))
    return [KeepTogether(parts)] if section.to_sign else parts


def _table(section: Section) -> Flowable:
    header = [section.header] if section.header else []
    cells = [[Paragraph(escape(cell), _BOLD) for cell in row] for row in header]
    cells += [[Paragraph(escape(cell), _TEXT) for cell in row] for row in section.rows]
    heights = [None] * len(header) + [_SIGNATURE_HEIGHT if section.to_sign else None] * len(section.rows)
    return LongTable(
        cells, colWidths=_widths(section), rowHeights=heights, repeatRows=len(header), style=_GRID
    )


def _widths(section: Section) -> list[float]:
    """Narrow columns first, and the rest for what is long."""
    columns = len(section.rows[0])
    first = section.header[0] if section.header else ""
    parts = _PARTS.get(first, [0.22, 0.78] if columns == 2 else [1 / columns] * columns)
    return [part * _WIDTH for part in parts]


def _number(canvas: Canvas, _document: object) -> None:
    canvas.setFont(_REGULAR, 8)
    canvas.drawRightString(A4[0] - _MARGIN, 10 * mm, f"page {canvas.getPageNumber()}")
