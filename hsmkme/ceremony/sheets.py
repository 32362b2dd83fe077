"""The sheet of paper on which one custodian keeps one share: words to type, a code to scan, whom it is for.

HTML for one printed page that loads nothing from anywhere. It holds the share: print it where nobody else reads along,
then destroy the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Final

import segno

from hsmkme.ceremony.shares import Share
from hsmkme.errors import OperatorFault
from hsmkme.words import spoken

_COLUMNS: Final = 6
_READ_ALOUD: Final = 8
"""How many bytes of a commitment are printed as words too."""

_PAGE: Final = Template("""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>share $index of $count</title>
<style>
@page { size: A4 portrait; margin: 18mm }
body { font: 11pt/1.4 sans-serif; color: #000; max-width: 174mm; page-break-after: always }
h1 { font-size: 18pt; margin: 0 }
dl { display: grid; grid-template-columns: 34mm auto; margin: 4mm 0 }
dt { font-weight: bold } dd { margin: 0; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100%; margin: 4mm 0; break-inside: avoid }
td { border: 1px solid #999; padding: 1.5mm; font: 10pt monospace }
td small { display: block; color: #555; font: 7pt sans-serif }
svg { width: 55mm; height: 55mm; float: right; margin-left: 6mm }
.sign { margin-top: 10mm; border-top: 1px solid #000; padding-top: 1mm; width: 110mm }
</style>
<h1>Share $index of $count</h1>
<p>Any $threshold of $count such shares restore the master key named here. Fewer tell nothing.</p>
<dl>
<dt>Custodian</dt><dd>$custodian</dd>
<dt>Key</dt><dd>$key</dd>
<dt>Set of shares</dt><dd>$set_id</dd>
<dt>Commitment</dt><dd>$commitment<br>$aloud …</dd>
</dl>
<table>
$rows
</table>
$code
<p>Keep this sheet sealed, apart from every other share. Show it to nobody, never copy or photograph it. To restore,
type the words in their order, or scan the code, at the ceremony only. If you think that somebody saw it, tell the
security officers: the shares and the key are then replaced.</p>
<p class="sign">Received by $custodian, date and signature</p>
</html>
""")


@dataclass(frozen=True, slots=True)
class Receiver:
    """Whom a sheet is for: the custodian's name, what key it is a share of, and how many shares there are."""

    custodian: str
    key: str
    count: int


def sheet(share: Share, receiver: Receiver) -> str:
    """The page, as HTML."""
    words = [f"<td><small>{place}</small>{word}</td>" for place, word in enumerate(share.words(), 1)]
    rows = (f"<tr>{''.join(words[start : start + _COLUMNS])}</tr>" for start in range(0, len(words), _COLUMNS))
    code = segno.make(share.scanned(), error="q", micro=False)
    return _PAGE.substitute(
        index=share.index,
        count=receiver.count,
        threshold=share.threshold,
        custodian=escape(receiver.custodian),
        key=escape(receiver.key),
        set_id=share.set_id.hex(),
        commitment=share.commitment.hex(),
        aloud=spoken(share.commitment[:_READ_ALOUD]),
        rows="\n".join(rows),
        code=code.svg_inline(omitsize=True),
    )


def write_private(path: Path, text: str) -> None:
    """Write a page to a new file that only its owner may read; raises `OperatorFault` if there is a file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise OperatorFault(f"{path} exists: nothing is overwritten, name another file") from None
    except OSError as error:
        raise OperatorFault(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
