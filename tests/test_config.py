"""Does a configuration that is wrong say everything that is wrong, and where?"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import ValidationError

from hsmkme import bootstrap
from hsmkme import config as configuration
from hsmkme.errors import ConfigRefused, OperatorFault
from hsmkme.hsm import Token, TokenAddress
from hsmkme.model import Link
from tests.pki import Request, TestAuthority
from tests.processes import hsmkme
from tests.sites import Site, make_site
from tests.world import Demo

GOOD = """\
kme_id = "kme-1"
store = "data/store.sqlite"

[token]
label = "token"
pin_file = "/run/secrets/pin"

[server]
certificate = "server/cert.pem"
key = "server/key.pem"
sae_ca = "ca.pem"

[[link]]
id = "local"
peer = "kme-1"

[[link]]
id = "far"
peer = "kme-2"
key_bits = 512

[[spool]]
link = "far"
directory = "spool"

[peering]
certificate = "peer/cert.pem"
key = "peer/key.pem"
ca = "peer-ca.pem"

[[peer]]
id = "kme-2"
url = "https://localhost:9444"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "hsmkme.toml").write_text(text, encoding="utf-8")
        return tmp_path / "hsmkme.toml"

    return write


def findings(path: Path) -> list[str]:
    with pytest.raises(ConfigRefused) as refusal:
        configuration.load(path)
    assert str(refusal.value).splitlines() == list(refusal.value.findings)
    return [finding.removeprefix(f"{path}:") for finding in refusal.value.findings]


# What is right ------------------------------------------------------------------------------------------


def test_a_short_configuration_is_completed_with_defaults(write: Callable[[str], Path]) -> None:
    config = configuration.load(write(GOOD))
    assert config.links == [Link("local", "kme-1", 256), Link("far", "kme-2", 512)]
    assert (config.keys.max_key_per_request, config.server.workers, config.sae.identity) == (128, 2, "uri")
    assert config.link_named("far").key_bits == 512
    with pytest.raises(ConfigRefused, match="no link 'paris' is configured; configured: local, far"):
        config.link_named("paris")


def test_peers_are_configured_by_name(write: Callable[[str], Path]) -> None:
    config = configuration.load(write(GOOD))
    assert config.peer_named("kme-2").url == "https://localhost:9444"
    with pytest.raises(ConfigRefused, match="no peer 'kme-9' is configured; configured: kme-2"):
        config.peer_named("kme-9")
    peering = config.required_peering()
    assert (peering.bind, peering.workers) == (["127.0.0.1:9443"], 1)
    assert (peering.crl, peering.max_body_bytes) == (None, 1 << 20)


def test_a_kme_with_local_links_alone_needs_no_peering(write: Callable[[str], Path]) -> None:
    text = GOOD.partition("[peering]")[0].replace('"kme-2"', '"kme-1"')
    config = configuration.load(write(text))
    assert (config.peering, config.peer) == (None, [])
    with pytest.raises(ConfigRefused, match=r"\[peering\] is not configured; it needs certificate, key and ca"):
        config.required_peering()
    with pytest.raises(ConfigRefused, match="no peer 'kme-2' is configured; configured: none"):
        config.peer_named("kme-2")


def test_paths_are_relative_to_the_file(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(GOOD)
    monkeypatch.chdir("/")
    for given in (path, Path(path.relative_to("/"))):
        config = configuration.load(given)
        assert config.store == tmp_path / "data" / "store.sqlite"
        assert config.server.certificate == tmp_path / "server" / "cert.pem"
        assert config.spool[0].directory == tmp_path / "spool"
        assert config.token[0].pin_file == Path("/run/secrets/pin")


def test_a_configuration_does_not_change(write: Callable[[str], Path]) -> None:
    config = configuration.load(write(GOOD))
    with pytest.raises(ValidationError):
        config.kme_id = "other"
    with pytest.raises(ValidationError):
        config.keys.key_size = 512


def test_the_digest_is_that_of_the_file(write: Callable[[str], Path]) -> None:
    one = configuration.digest(write(GOOD))
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert configuration.digest(write(GOOD + "# a comment\n")) != one


# What is wrong with the text ----------------------------------------------------------------------------
# Each takes the place of what stands in GOOD. The finding must name the line that is marked with "#!".

NO_INTEGER = "Input should be a valid integer"
SIZES = "keys: min_key_size ≤ key_size ≤ max_key_size does not hold"
DEFECTS = [
    ('kme_id = "kme-1"', 'kme_id = "kme 1" #!', "kme_id: String should match pattern"),
    ('kme_id = "kme-1"', "kme_id = 1 #!", "kme_id: Input should be a valid string"),
    ('kme_id = "kme-1"\nstore = "data/store.sqlite"', 'kme_id = "kme-1" #!', "store: is missing"),
    ('store = "data/store.sqlite"', 'store = "s"\nstroe = "x" #!', "stroe: unknown key"),
    ("[token]", "[tokens] #!\nx = 1\n[token]", "tokens: unknown key"),
    ("[token]", "[token]\nlable = 'x' #!", "token.lable: unknown key"),
    ('label = "token"', 'label = "" #!', "token.label: String should have at least 1 character"),
    ('label = "token"', f'label = "{"x" * 33}" #!', "token.label: String should have at most 32 characters"),
    ("[token]", '[token]\nmodule_sha256 = "abc" #!', "token.module_sha256: String should match pattern"),
    ("[token]", '[token]\nblock_keys = "64" #!', f"token.block_keys: {NO_INTEGER}"),
    ("[token]", "[token]\nblock_keys = 6.5 #!", f"token.block_keys: {NO_INTEGER}"),
    ("[token]", "[token]\nblock_keys = true #!", f"token.block_keys: {NO_INTEGER}"),
    ("[token]", '[token]\npin = "1234" #!', "token.pin: unknown key"),
    ('pin_file = "/run/secrets/pin"', "pin_file = 1234 #!", "token.pin_file: Input is not a valid path"),
    ("[server]", "[server]\n  workers = 0 #!", "server.workers: Input should be greater than 0"),
    ("[server]", '[server]\nbind = "x" #!', "server.bind: Input should be a valid list"),
    ("[server]", '[server]\nbind = [ #!\n "a",\n 3,\n]', "server.bind.1: Input should be a valid string"),
    ('[server]\ncertificate = "server/cert.pem"', "[server] #!", "server.certificate: is missing"),
    ("[[spool]]", "[sae]\nidentity = 'email' #!\n[[spool]]", "sae.identity: Input should be 'uri', 'dns' or 'cn'"),
    ("[[spool]]", "[keys]\nkey_size = 257 #!\n[[spool]]", "keys.key_size: Input should be a multiple of 8"),
    ("[[spool]]", "[keys] #!\nmin_key_size = 512\n[[spool]]", SIZES),
    ("[[spool]]", "[keys] #!\nmax_key_size = 128\nbogus = 1\n[[spool]]", SIZES),
    ("[[spool]]", "[keys]\nmax_sae_id_count = 63 #!\n[[spool]]", "keys.max_sae_id_count: Input should be less than"),
    ('peer = "kme-2"', 'peer = "kme-2"\npeeer = "x" #!', "link.1.peeer: unknown key"),
    ('[[link]]\nid = "far"\npeer = "kme-2"', '[[link]] #!\nid = "far"', "link.1.peer: is missing"),
    ("key_bits = 512", "key_bits = 100 #!", "link.1.key_bits: Input should be a multiple of 64"),
    ("key_bits = 512", "key_bits = 0 #!", "link.1.key_bits: Input should be greater than 0"),
    ('id = "far"', 'id = "local" #!', "link.1.id: another link has this id"),
    ('link = "far"', 'link = "paris" #!', "spool.0.link: no link 'paris' is configured"),
    ("[[spool]]", '[[spool]]\nformat = "octal" #!', "spool.0.format: Input should be"),
    ('[peering]\ncertificate = "peer/cert.pem"', "[peering] #!", "peering.certificate: is missing"),
    ('ca = "peer-ca.pem"', 'ca = "peer-ca.pem"\nproxy = "x" #!', "peering.proxy: unknown key"),
    ("[peering]", "[peering]\nworkers = 0 #!", "peering.workers: Input should be greater than 0"),
    ('url = "https://localhost:9444"', 'url = "http://localhost:9444" #!', "peer.0.url: String should match"),
    ('url = "https://localhost:9444"', 'url = "https://localhost:9444/" #!', "peer.0.url: String should match"),
    ('url = "https://localhost:9444"', 'url = "https://a@localhost" #!', "peer.0.url: String should match"),
    ('[[peer]]\nid = "kme-2"', '[[peer]]\nid = "kme-1" #!', "peer.0.id: this KME is no peer of its own"),
    ('id = "kme-2"', 'id = "kme-2"\nurl = "https://a"\n[[peer]]\nid = "kme-2" #!', "peer.1.id: another peer has"),
    ('peer = "kme-2"', 'peer = "kme-3" #!', "link.1.peer: no peer 'kme-3' is configured"),
]


@pytest.mark.parametrize(("old", "new", "finding"), DEFECTS, ids=[new for _, new, _ in DEFECTS])
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, finding: str, write: Callable[[str], Path]) -> None:
    text = GOOD.replace(f"{old}\n", f"{new}\n", 1)
    (line,) = (number for number, line in enumerate(text.splitlines(), start=1) if "#!" in line)
    found = findings(write(text))
    assert any(one.startswith(f"{line}: {finding}") for one in found), (line, found)


def test_everything_that_is_wrong_is_said_at_once_in_the_order_of_the_lines(write: Callable[[str], Path]) -> None:
    text = """\
kme_id = "kme 1"
wrong = 1
store = "s"
[token]
label = 5
pin_file = "pin"
bogus = 2
[server]
certificate = "a"
sae_ca = "c"
workers = "2"
[keys]
min_key_size = 512
key_size = 260
[[link]]
id = "a"
peer = "b"
[[link]]
id = "a"
peer = "b"
key_bits = 100
[[spool]]
link = "z"
directory = "d"
"""
    found = [finding.partition(": ") for finding in findings(write(text))]
    assert [(int(line), rest.partition(": ")[0]) for line, _, rest in found] == [
        (1, "kme_id"),
        (2, "wrong"),
        (5, "token.label"),
        (7, "token.bogus"),
        (8, "server.key"),
        (11, "server.workers"),
        (12, "keys"),
        (14, "keys.key_size"),
        (17, "link.0.peer"),
        (17, "link.0.peer"),
        (19, "link.1.id"),
        (20, "link.1.peer"),
        (20, "link.1.peer"),
        (21, "link.1.key_bits"),
        (23, "spool.0.link"),
    ]


def test_a_key_in_a_comment_or_another_table_is_not_the_line_meant(write: Callable[[str], Path]) -> None:
    text = GOOD.replace("[server]\n", "[server]\n# workers = 0\n").replace("[[spool]]", "[audit]\n[[spool]]")
    text = text.replace('sae_ca = "ca.pem"\n', 'sae_ca = "ca.pem"\nworkers = 0\n')
    (found,) = findings(write(text))
    assert found.startswith("13: server.workers: ")


def test_what_is_no_toml_is_said_with_its_line(write: Callable[[str], Path], tmp_path: Path) -> None:
    (found,) = findings(write(GOOD.replace("[token]", "[token")))
    assert "at line 4" in found
    (tmp_path / "hsmkme.toml").write_bytes(b"\xff\xfe")
    (found,) = findings(tmp_path / "hsmkme.toml")
    assert "utf-8" in found


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    assert findings(tmp_path / "nothing.toml") == [" cannot be read: No such file or directory"]
    assert findings(tmp_path) == [" cannot be read: Is a directory"]


# PIN file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o500])
def test_a_pin_file_of_the_owner_alone_is_read_when_the_pin_is_asked_for(mode: int, tmp_path: Path) -> None:
    pin_file = tmp_path / "pin"
    read = bootstrap.pin_source(pin_file)
    pin_file.write_text("123456\n")
    pin_file.chmod(mode)
    assert read() == "123456"


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o644, 0o420, 0o402, 0o410, 0o401, 0o777])
def test_a_pin_file_that_others_may_read_or_change_is_refused(mode: int, tmp_path: Path) -> None:
    pin_file = tmp_path / "pin"
    pin_file.write_text("123456\n")
    pin_file.chmod(mode)
    with pytest.raises(OperatorFault, match=r"can be read by others: chmod 0400") as fault:
        bootstrap.pin_source(pin_file)()
    assert "123456" not in str(fault.value)


def test_a_pin_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "pin", tmp_path / "a" / "b"):
        with pytest.raises(OperatorFault, match="cannot be read: No such file"):
            bootstrap.pin_source(path)()


# hsmkme check -------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, token: Token, address: TokenAddress, softhsm: Path, demo: Demo) -> Site:
    """A site in which everything is good: the certificates are those of the demo."""
    directory = tmp_path / "site"
    directory.mkdir()
    site = make_site(directory, token, address.label, softhsm)
    shutil.copy(demo.config.parent / "server" / "cert.pem", directory / "cert.pem")
    shutil.copy(demo.config.parent / "server" / "key.pem", directory / "key.pem")
    shutil.copy(demo.description["ca"], directory / "ca.pem")
    certify_peer(site, BOTH_USAGES)
    return site


BOTH_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def certify_peer(site: Site, usage: tuple[ObjectIdentifier, ...], name: str = "urn:qkd:kme:kme-1") -> None:
    """Give the site's listener for peers a new CA and a certificate."""
    authority = TestAuthority()
    (site.directory / "peer-ca.pem").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    files = authority.issue(site.directory / "peer", Request(uris=[name], usage=usage))
    for file in map(Path, files):
        file.replace(site.directory / f"peer-{file.name}")


def test_check_finds_a_good_kme_good(demo: Demo) -> None:
    done = hsmkme("--config", demo.config, "check")
    assert (done.status, done.out.split()[0]) == (0, "good")
    done = hsmkme("--config", demo.config, "check", "--json")
    assert (done.status, json.loads(done.out)) == (0, {"good": True, "findings": []})


def test_check_finds_a_good_site_good(site: Site) -> None:
    assert json.loads(site.hsmkme("check", "--json").out) == {"good": True, "findings": []}


def test_check_lists_everything_whatever_else_is_wrong(site: Site) -> None:
    (site.directory / "cert.pem").unlink()
    (site.directory / "ca.pem").unlink()
    (site.directory / "peer-key.pem").unlink()
    (site.directory / "pin").chmod(0o444)
    (site.directory / "spool").write_text("not a directory")
    site.path.unlink()
    site.change_config("[server]", "[server]\nworkers = 'two'")
    site.change_config("[[link]]", 'bogus = 1\n[[spool]]\nlink = "local"\ndirectory = "spool"\n[[link]]')
    done = site.hsmkme("check", "--json")
    report = json.loads(done.out)
    assert (done.status, report["good"]) == (1, False)
    expected = (
        f"{site.config}:8: server.workers: Input should be a valid integer",
        f"{site.config}:12: server.bogus: unknown key",
        f"no file {site.directory}/cert.pem",
        f"server: no file {site.directory}/ca.pem",
        f"peering: no file {site.directory}/peer-key.pem",
        f"spool.directory: {site.directory}/spool is not a directory",
        f"store: there is no store at {site.path}: run `hsmkme migrate`",
        f"token: {site.directory}/pin can be read by others: chmod 0400",
    )
    for part in expected:
        assert [part in finding for finding in report["findings"]].count(True) == 1, (part, report)
    assert len(report["findings"]) == len(expected)
    shown = site.hsmkme("check")
    assert shown.status == 1
    assert shown.out.splitlines() == [f"wrong  {finding}" for finding in report["findings"]]


def drop_epoch(site: Site) -> None:
    with sqlite3.connect(site.path) as connection:
        connection.execute("DROP TRIGGER epoch_stays")
        connection.execute("UPDATE epoch SET check_value = '0000000000'")


def drop_schema(site: Site) -> None:
    site.path.unlink()
    site.path.touch()


@pytest.mark.parametrize(
    ("spoil", "finding"),
    [
        (lambda site: site.change_config("test-", "no-test-"), "token: no token labelled 'no-test-"),
        (lambda site: site.change_config("[token]", '[token]\nserial = "1"'), "token: no token labelled"),
        (lambda site: site.change_config("[token]", '[token]\nprofile = "acme"'), "token: no token profile 'acme'"),
        (lambda site: site.change_config("[token]", '[token]\nmodule = "/no/module.so"'), "token: "),
        (lambda site: site.change_config("[token]", f'[token]\nmodule_sha256 = "{"0" * 64}"'), "token: "),
        (lambda site: (site.directory / "pin").unlink(), "token: the PIN file "),
        (lambda site: site.change_config('peer = "kme-2"', 'peer = "kme-3"'), "store: link far goes to kme-2, not to"),
        (drop_schema, "store: the store has schema 0"),
        (lambda site: site.path.write_bytes(b"no database" * 99), "store: the store cannot be used now: file is not a"),
        (drop_epoch, "token: master/1 of this token is not the key that this store was sealed under"),
        (lambda site: shutil.copy(site.directory / "ca.pem", site.directory / "key.pem"), "server: "),
        (lambda site: (site.directory / "key.pem").write_text(""), "server: "),
        (lambda site: (site.directory / "peer-key.pem").write_text(""), "peering: the certificate files do not make"),
        (lambda site: shutil.copy(site.directory / "ca.pem", site.directory / "peer-ca.pem"), "peering: a CA of KMEs"),
        (lambda site: certify_peer(site, BOTH_USAGES, "urn:qkd:kme:kme-2"), "peering: urn:qkd:kme:kme-1 is not"),
        (lambda site: certify_peer(site, BOTH_USAGES[:1]), "peering: the extended key usage"),
        (lambda site: certify_peer(site, BOTH_USAGES[1:]), "peering: the extended key usage"),
    ],
)
def test_check_finds_what_only_the_machine_can_tell(spoil: Callable[[Site], object], finding: str, site: Site) -> None:
    spoil(site)
    done = site.hsmkme("check", "--json")
    report = json.loads(done.out)
    assert done.status == 1
    assert any(one.startswith(finding) for one in report["findings"]), report


def test_check_finds_a_wrong_pin_and_does_not_show_it(site: Site, make_token: Callable[[], TokenAddress]) -> None:
    (site.directory / "pin").chmod(0o600)
    (site.directory / "pin").write_text("wrong-pin")
    site.change_config(site.settings.token[0].label, make_token().label)  # wrong logins count against no other test
    done = site.hsmkme("check")
    assert (done.status, "PinIncorrect" in done.out) == (1, True)
    assert "wrong-pin" not in done.out + done.err


def test_every_command_refuses_a_configuration_that_is_wrong(site: Site) -> None:
    site.change_config("[server]", "[server]\nbogus = 1")
    for arguments in (("sae", "list"), ("migrate",), ("audit", "verify"), ("link", "list")):
        done = site.hsmkme(*arguments)
        assert (done.status, done.err) == (1, f"{site.config}:8: server.bogus: unknown key\n")
