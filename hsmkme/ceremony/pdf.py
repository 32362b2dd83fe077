"""The document of a ceremony as PDF, made by reportlab: the same transcript always gives the same file."""

from __future__ import annotations

import io
from html import escape
from typing import Final

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, KeepTogether, LongTable, Paragraph, SimpleDocTemplate, TableStyle

from hsmkme.ceremony.document import Document, Section

_TEXT: Final = ParagraphStyle("text", fontName="Helvetica", fontSize=9, leading=12, splitLongWords=1)
_BOLD: Final = ParagraphStyle("bold", _TEXT, fontName="Helvetica-Bold")
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
    """The file."""
    output = io.BytesIO()
    template = SimpleDocTemplate(
        output, pagesize=A4, leftMargin=_MARGIN, rightMargin=_MARGIN, title=content.title, invariant=1
    )
    story: list[Flowable] = [Paragraph(escape(content.title), _TITLE)]
    for section in content.sections:
        story += _flowables(section)
    template.build(story, onFirstPage=_number, onLaterPages=_number)
    return output.getvalue()


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
    canvas.setFont("Helvetica", 8)
    canvas.drawRightString(A4[0] - _MARGIN, 10 * mm, f"page {canvas.getPageNumber()}")
