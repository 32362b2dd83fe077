"""Would somebody file what `ceremony print` makes: everything in it, whole, with a line for each signature?"""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pypdf
import pytest

from hsmkme.ceremony.document import Document, Section
from hsmkme.ceremony.pdf import pdf
from hsmkme.errors import OperatorFault
from hsmkme.words import spoken
from tests.ceremonies.halls import Hall, told, transcript_of
from tests.processes import hsmkme

PURPOSE = "<b>A</b> & new token, Zoë Łukaszewska, Ağaoğlu, Ελένη Ωμέγα, Жанна Щукина –"


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a first ceremony that was held; its purpose has what HTML would take for a tag, and many letters."""
    hall = Hall(tmp_path_factory.mktemp("held")).prepare()
    plan = hall.plan("first", "", ('purpose = "A new token', f'purpose = "{PURPOSE}'))
    assert hall.run(plan, {"op-1.make-digest": ["no", "make digest"]}).status == 0
    return plan


@pytest.fixture(scope="module")
def printed(held: Path) -> tuple[Path, Path]:
    html, pdf = held.parent / "held.html", held.parent / "held.pdf"
    done = hsmkme("ceremony", "print", held, "--html", html, "--pdf", pdf)
    assert done.status == 0, done.err
    return html, pdf


class Page(HTMLParser):
    """The text of a page, and what it loads from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.loads, self.open, self.rows = "", [], [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def everything(plan: Path) -> list[str]:
    """What must stand in a document."""
    (end,) = told(plan, "end")
    (begin,) = told(plan, "begin")
    digest = re.findall(r"digest begins with (\w+)", transcript_of(plan).read_text())[0]
    made = {done["evidence"]["label"]: done["evidence"] for done in told(plan, "done")}
    facts = [begin["plan_sha256"], begin["policy"], digest, made["master/1"]["check_value"]]
    token = [end["token"][name] for name in ("serial", "model", "firmware", "library_sha256")]
    words = [f"{PURPOSE} for the KME", "NEVER_EXTRACTABLE", "AES_KEY_WRAP", "wrong-input", "attests none"]
    return [*facts, *token, *words, "so-1", "op-1", "witness-1", "Signatures by hand", "security-officer"]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_the_page_has_everything_and_loads_nothing(held: Path, printed: tuple[Path, Path]) -> None:
    page = Page(printed[0])
    assert page.open in ([], ["html"])
    assert page.loads == []
    missing = [fact for fact in everything(held) if fact not in page.text]
    assert missing == []
    assert "@page" in printed[0].read_text()


def test_the_pdf_has_everything(held: Path, printed: tuple[Path, Path]) -> None:
    pages = pypdf.PdfReader(printed[1]).pages
    text = squeezed("".join(page.extract_text() for page in pages))
    missing = [fact for fact in everything(held) if squeezed(fact) not in text]
    assert missing == []
    assert f"page{len(pages)}" in text


@pytest.mark.parametrize(
    ("text", "letter"), [("鍵の式典", "'鍵' (U+9375, CJK UNIFIED IDEOGRAPH-9375)"), ("טקס", "HEBREW LETTER TET")]
)
def test_a_letter_that_the_pdf_cannot_show_is_named_and_no_other_is_put_in_its_place(text: str, letter: str) -> None:
    for content in (
        Document(text, []),
        Document("x", [Section("x", [text])]),
        Document("x", [Section("x", rows=[("a", text)])]),
    ):
        with pytest.raises(OperatorFault, match=re.escape(letter)) as fault:
            pdf(content)
        assert "print it as HTML, --html" in str(fault.value)


def test_the_digest_stands_there_in_words_too(held: Path, printed: tuple[Path, Path]) -> None:
    proved = hsmkme("ceremony", "verify", held)
    (digest,) = re.findall(r"^digest  (\w+)$", proved.out, re.MULTILINE)
    assert f"<p>{digest}</p>\n<p>{spoken(bytes.fromhex(digest))}</p>" in printed[0].read_text()


def test_everybody_has_a_line_to_sign(printed: tuple[Path, Path]) -> None:
    table = printed[0].read_text().partition('<table class="sign">')[2].partition("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td></td><td></td></tr>", table)
    assert rows == [("so-1", "security-officer"), ("op-1", "operator"), ("witness-1", "witness")]


def test_the_same_transcript_gives_the_same_files(held: Path, printed: tuple[Path, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.html", tmp_path / "again.pdf"
    hsmkme("ceremony", "print", held, "--html", again[0], "--pdf", again[1])
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in printed]


def test_nothing_is_printed_over_and_nothing_of_a_transcript_that_is_broken(
    held: Path, printed: tuple[Path, Path], tmp_path: Path
) -> None:
    assert hsmkme("ceremony", "print", held, "--html", printed[0]).status == 2
    assert hsmkme("ceremony", "print", held).status == 2
    broken = tmp_path / "broken.jsonl"
    broken.write_text(transcript_of(held).read_text().replace("op-1", "op-2"))
    out = tmp_path / "broken.html"
    done = hsmkme("ceremony", "print", held, "--transcript", broken, "--html", out)
    assert (done.status, "does not prove itself: line " in done.err, out.exists()) == (1, True, False)


def test_without_the_library_for_pdf_it_says_what_to_do(held: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['reportlab'] = None\n"
        "from hsmkme.cli import main\n"
        f"main(['ceremony', 'print', {str(held)!r}, '--pdf', {str(tmp_path / 'x.pdf')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, b"pip install 'hsmkme[print]'" in done.stderr) == (1, True)
    assert not (tmp_path / "x.pdf").exists()
