"""Is what the README and ``ops/config.md`` say true? Their commands are run, not copies of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click import Context
from click.testing import CliRunner
from pydantic import BaseModel

from hsmkme import config as configuration
from hsmkme.cli import main
from hsmkme.config import Config, KeysSection
from hsmkme.demo.exchange import curl_lines
from tests.world import Demo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONFIG = (ROOT / "ops" / "config.md").read_text()


def section(title: str) -> str:
    """What stands under a heading of the README."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def block(text: str, language: str) -> str:
    """The one block of this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found)


# How an SAE connects


@pytest.fixture
def workplace(demo: Demo, tmp_path: Path) -> Path:
    """A directory in which `.demo` is the running demo, as in a clone after `./ops/demo`."""
    (tmp_path / ".demo").symlink_to(demo.directory)
    return tmp_path


def run(command: list[str], directory: Path, **more: str) -> str:
    """Standard output.

    Nothing of the environment stands between client and KME: no proxy, and no CA file that `requests` would
    prefer to ``Session.verify``.
    """
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_CA_BUNDLE")}
    environment |= {"NO_PROXY": "localhost", "no_proxy": "localhost"} | more
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, timeout=120, check=False)
    code = done.returncode
    assert code == 0, done.stderr.decode()
    return done.stdout.decode()


def at_ports_of(demo: Demo, text: str) -> str:
    """``text`` with the ports of the KMEs of alice and bob in place of those that `./ops/demo` gives them."""
    alice, bob = demo.serving("sae-1"), demo.serving("sae-2")
    return text.replace(":8443/", f":{alice.port}/").replace(":8444/", f":{bob.port}/")


def test_the_curl_commands_exchange_a_key(demo: Demo, workplace: Path) -> None:
    setting, commands = at_ports_of(demo, block(section("How an SAE connects"), "sh")).split("\n\n")
    status, enc_keys, dec_keys = commands.splitlines()

    def curl(command: str, **more: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(run(["sh", "-euc", f"{setting}\n{command}"], workplace, **more))
        return answer

    assert curl(status)["slave_SAE_ID"] == "sae-2"
    (fetched,) = curl(enc_keys)["keys"]
    (collected,) = curl(dec_keys, KEY_ID=fetched["key_ID"])["keys"]
    same = fetched == collected
    assert same
    assert "message" in curl(dec_keys, KEY_ID=fetched["key_ID"])


def test_the_python_example_gets_keys_that_the_slave_can_collect(demo: Demo, workplace: Path) -> None:
    """``use``, which the reader is to write, tells which keys there were, by their SHA-256."""
    use = """
import base64, hashlib
def use(key_ID, key):
    print(key_ID, hashlib.sha256(base64.b64decode(key, validate=True)).hexdigest())
"""
    example = at_ports_of(demo, block(section("How an SAE connects"), "python"))
    lines = run([sys.executable, "-c", use + example], workplace).splitlines()
    used = dict(line.split() for line in lines)
    assert len(used) == 2
    collected = demo.dec("sae-2", "sae-1", list(used))
    assert {key_id: hashlib.sha256(key).hexdigest() for key_id, key in collected.items()} == used


def test_every_command_that_the_demo_prints_works(demo: Demo) -> None:
    status, enc_keys, dec_keys = curl_lines(demo.description)
    here = demo.directory
    assert json.loads(run(["sh", "-c", status], here))["master_SAE_ID"] == "sae-1"
    (fetched,) = json.loads(run(["sh", "-c", enc_keys], here))["keys"]
    (collected,) = json.loads(run(["sh", "-c", dec_keys.replace("KEY_ID'", f"{fetched['key_ID']}'")], here))["keys"]
    same = fetched == collected
    assert same


def test_the_limits_that_the_readme_names_are_the_defaults() -> None:
    limits = KeysSection()
    assert (
        f"Any size from {limits.min_key_size} to {limits.max_key_size} bits that is a multiple of 8, up to "
        f"{limits.max_key_per_request} keys for a request, up to {limits.max_sae_id_count} additional slaves."
    ) in README


# Commands and files


def commands() -> Iterator[tuple[str, ...]]:
    """Every `hsmkme` command line in the README; `a|b` stands for two."""
    shell = "\n".join(re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
    lines = re.findall(r"^hsmkme .*$", shell, re.MULTILINE) + re.findall(r"`(hsmkme [^`]+)`", README)
    for line in lines:
        _, *words = shlex.split(line, comments=True)
        alternatives = next((word for word in words if "|" in word), "")
        for one in alternatives.split("|"):
            yield tuple(one if word == alternatives else word for word in words)


@pytest.mark.parametrize("words", sorted(set(commands())), ids=" ".join)
def test_a_command_of_the_readme_exists_and_has_the_options_that_it_is_given(words: tuple[str, ...]) -> None:
    """With ``--help`` at its end: an unknown command or option is an error before that."""
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0, result.output


def test_the_readme_has_every_command() -> None:
    assert {words[0] for words in commands()} == set(main.list_commands(Context(main)))


@pytest.mark.parametrize("script", sorted(set(re.findall(r"\./(ops/\w+)", README))))
def test_a_script_of_the_readme_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize(
    ("document", "target"),
    [
        (document.relative_to(ROOT).as_posix(), target)
        for document in (ROOT / "README.md", *sorted((ROOT / "ops").rglob("*.md")))
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    ],
)
def test_a_link_leads_to_a_file(document: str, target: str) -> None:
    assert ((ROOT / document).parent / target).exists()


# Configuration

_EXAMPLES = {"module_sha256": "ab" * 32, "serial": "0123456789abcdef"}
"""For keys that the document shows commented out, with an ellipsis as their value."""


def documented() -> str:
    """The configuration in ``ops/config.md`` with everything that is commented out put in."""
    text = re.sub(r"^# (?=\w+ = )", "", block(CONFIG, "toml"), flags=re.MULTILINE)
    for name, value in _EXAMPLES.items():
        text = text.replace(f'{name} = "…"', f'{name} = "{value}"')
    return text


def loaded(text: str, directory: Path) -> Config:
    file = directory / "hsmkme.toml"
    file.write_text(text)
    return configuration.load(file)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or a list of which it holds."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that the configuration may have, dotted, and its default."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None:
            yield prefix + name, field.default
        else:
            yield from fields(inner, f"{prefix}{name}.")


def keys(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key in a configuration, dotted, and its value."""
    for name, value in tree.items():
        tables = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for table in tables:
            if isinstance(table, dict):
                yield from keys(table, f"{prefix}{name}.")
            else:
                yield prefix + name, value


def test_the_documented_configuration_loads_as_it_stands(tmp_path: Path) -> None:
    assert loaded(block(CONFIG, "toml"), tmp_path).kme_id == "kme-1"


def test_every_key_of_the_configuration_is_documented_and_loads(tmp_path: Path) -> None:
    loaded(documented(), tmp_path)
    assert {name for name, _ in keys(tomllib.loads(documented()))} == {name for name, _ in fields(Config)}


def test_the_values_in_the_document_are_the_defaults_where_there_are_any() -> None:
    defaults = {name: default for name, default in fields(Config) if isinstance(default, str | int | list)}
    shown = dict(keys(tomllib.loads(documented())))
    assert {name: shown[name] for name in defaults} == defaults
