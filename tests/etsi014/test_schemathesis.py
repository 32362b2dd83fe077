"""Does schemathesis, reading only the description, find anything that is not as described?"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import Demo, start_demo

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A KME whose pool may run dry."""
    with start_demo(tmp_path_factory.mktemp("schemathesis"), saes=2, keys=20_000) as running:
        yield running


def examine(demo: Demo, directory: Path, configuration: str, *options: str) -> None:
    """Run schemathesis as an SAE developer does, with the certificate of sae-1."""
    home = demo.directory / "saes" / "sae-1"
    (directory / "schemathesis.toml").write_text(configuration)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(directory / "schemathesis.toml"), "run"]
    command += [f"{demo.kme['url']}/openapi.json", "--tls-verify", str(demo.description["ca"])]
    command += ["--request-cert", str(home / "cert.pem"), "--request-cert-key", str(home / "key.pem"), *options]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_found_between_two_saes_that_exchange_keys(own: Demo, tmp_path: Path) -> None:
    parameters = '\n[parameters]\nslave_SAE_ID = "sae-2"\nmaster_SAE_ID = "sae-2"\n'
    examine(own, tmp_path, CONFIGURATION.read_text() + parameters)


def test_nothing_is_found_with_saes_that_are_made_up(own: Demo, tmp_path: Path) -> None:
    examine(own, tmp_path, CONFIGURATION.read_text(), "--phases", "coverage,fuzzing")
