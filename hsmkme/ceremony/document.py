"""A transcript as a document to be signed by hand and filed: what it says, in sections; and as a page of HTML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from hsmkme.ceremony.verifying import Line, Report
from hsmkme.words import spoken

Row = tuple[str, ...]

EVIDENCE: Final = (
    "What is said here of the token and its objects is evidence: the token and its library said it of themselves, and"
    " this program read it back. The token attests none of it. The signatures prove that these lines were not changed"
    " since, and who signed them."
)
_HAPPENED: Final = ("wrong-input", "removed", "resumed", "abort", "failed", "compared")

_STYLE: Final = """
@page { size: A4 portrait; margin: 20mm 18mm; @bottom-right { content: counter(page) " / " counter(pages) } }
body { font: 10.5pt/1.4 sans-serif; color: #000; max-width: 174mm; margin: 10mm auto }
h1 { font-size: 18pt; margin: 0 0 2mm } h2 { font-size: 12.5pt; margin: 7mm 0 2mm; break-after: avoid }
table { border-collapse: collapse; width: 100% } tr { break-inside: avoid }
th, td { border: 0.3mm solid #888; padding: 1.2mm 2mm; text-align: left; vertical-align: top }
th { background: #eee } td { overflow-wrap: anywhere } thead { display: table-header-group }
table.sign td { height: 13mm } p { overflow-wrap: anywhere }
@media print { body { margin: 0 } }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, paragraphs, and a table if there are rows. ``to_sign``: its rows leave room for a signature."""

    title: str
    paragraphs: Sequence[str] = ()
    header: Row = ()
    rows: Sequence[Row] = ()
    to_sign: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A title and sections."""

    title: str
    sections: Sequence[Section]


def document(lines: Sequence[Line], report: Report) -> Document:
    """The document of a transcript that was verified with this ``report``."""
    begin = lines[0]["facts"]
    plan = tomllib.loads(begin["plan"])
    return Document(f"Key ceremony {report.ceremony}", [*_sections(lines, report, begin, plan)])


def _sections(lines: Sequence[Line], report: Report, begin: Line, plan: dict[str, Any]) -> Iterator[Section]:
    digest = bytes.fromhex(report.digest)
    facts = (("Purpose", begin["purpose"]), ("Policy", begin["policy"]), ("Began", report.began))
    rest = (("Ended", report.ended), ("Plan, SHA-256", report.plan_sha256), ("Program", f"hsmkme {begin['version']}"))
    yield Section("The ceremony", (EVIDENCE,), (), [*facts, *rest])
    token = next(line["facts"]["token"] for line in lines if line["what"] == "end")
    yield Section("The token", (), (), [(name, _plain(value)) for name, value in token.items()])
    signs = [(person["id"], person["role"], person.get("key", "")) for person in plan["person"]]
    yield Section("The people", (), ("Who", "Role", "Key"), signs)
    if begin["remarks"]:
        yield Section("Remarks on the machine", [*begin["remarks"]])
    for step, (at, evidence) in zip(plan["step"], _done(lines), strict=True):
        yield _step(step, at, evidence)
    happened = [(line["at"], line["what"], _plain(line["facts"])) for line in lines if line["what"] in _HAPPENED]
    if happened:
        yield Section("What else happened", (), ("When", "What", "Facts"), happened)
    yield Section("The digest of the transcript", (report.digest, spoken(digest)))
    yield Section("Signatures in the transcript", (", ".join(report.signed_by) or "none",))
    hands = [(person["id"], person["role"], "", "") for person in plan["person"]]
    yield Section("Signatures by hand", (), ("Who", "Role", "Date", "Signature"), hands, to_sign=True)


def _done(lines: Sequence[Line]) -> list[tuple[str, Line]]:
    return [(line["at"], line["facts"]["evidence"]) for line in lines if line["what"] == "done"]


def _step(step: dict[str, Any], at: str, evidence: Line) -> Section:
    subject = step.get("object", step.get("whose", ""))
    rows = [(name, _plain(value), _plain(step.get("expect", {}).get(name))) for name, value in evidence.items()]
    people = f"Done by {', '.join(step['by'])} at {at}."
    return Section(f"Step: {step['do']} {subject}".rstrip(), (people,), ("What", "Read back", "Expected"), rows)


def _plain(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def html(content: Document) -> str:
    """A page that loads nothing from anywhere and prints on A4."""
    body = "\n".join(_html_section(section) for section in content.sections)
    title = escape(content.title)
    head = f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>'
    return f"{head}\n<h1>{title}</h1>\n{body}\n</html>\n"


def _html_section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *(f"<p>{escape(text)}</p>" for text in section.paragraphs)]
    if section.rows:
        parts.append('<table class="sign">' if section.to_sign else "<table>")
        if section.header:
            parts.append(f"<thead><tr>{_cells('th', section.header)}</tr></thead>")
        parts += [f"<tr>{_cells('td', row)}</tr>" for row in section.rows]
        parts.append("</table>")
    return "\n".join(parts)


def _cells(kind: str, row: Row) -> str:
    return "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in row)
