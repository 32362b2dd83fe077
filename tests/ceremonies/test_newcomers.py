"""Do the scripts of ``softhsm/`` give a newcomer what they say, by a ceremony?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.ceremonies.test_kinds import ALL
from tests.processes import hsmkme
from tests.tokens import evidence_of

SCRIPT = Path(__file__).parent.parent.parent / "softhsm" / "new-token"


def test_a_new_token_is_made_by_the_first_ceremony_and_nothing_of_the_pins_is_left_elsewhere(tmp_path: Path) -> None:
    environment = {**os.environ, "HSMKME": f"{sys.executable} -m hsmkme", "PYTHONPATH": str(SCRIPT.parent.parent)}
    command = [str(SCRIPT), str(tmp_path / "new"), "test-newcomer"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "new"
    (transcript,) = home.glob("*.jsonl")
    assert sorted(made["label"] for made in evidence_of(transcript)) == sorted(["test-newcomer", *ALL])
    assert hsmkme("ceremony", "verify", home / "first.toml").status == 0
    assert "Signatures by hand" in (home / "first.html").read_text()
    pins = [(home / name).read_text() for name in ("pin", "so-pin")]
    private = [path for path in home.iterdir() if path.is_file() and path.name not in ("pin", "so-pin")]
    assert not any(pin in path.read_text() for pin in pins for path in private)
    assert {(home / name).stat().st_mode & 0o777 for name in ("pin", "so-pin")} == {0o400}
    assert not any(pin in done.stdout + done.stderr for pin in pins)
