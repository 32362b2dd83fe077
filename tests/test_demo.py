"""Does `hsmkme demo` give KMEs that can be relied on: their interface, certificates, state and links?"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import ssl
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hsmkme import config as configuration
from hsmkme.demo.authority import Authority
from hsmkme.demo.kme import DemoKme
from hsmkme.demo.readiness import unready_links
from hsmkme.demo.world import World
from hsmkme.errors import OperatorFault
from tests.load import check_same
from tests.tokens import evidence_of
from tests.world import Demo, free_port, free_ports, run_cli, start_demo, until

KME_MEMBERS = {"id", "url", "config", "store", "token_label", "softhsm_conf", "pids"}
SAE_MEMBERS = {"id", "kme", "cert", "key", "bundle"}


@pytest.fixture(scope="module")
def kme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo of this module's own, which its tests leave running."""
    with start_demo(tmp_path_factory.mktemp("demo"), saes=3, keys=500, workers=2) as demo:
        yield demo


# The interface ------------------------------------------------------------------------------------------------


def test_demo_json_has_the_documented_members_and_no_others(kme: Demo) -> None:
    assert kme.description.keys() == {"ca", "kmes", "saes"}
    assert [set(entry) for entry in kme.description["kmes"]] == [KME_MEMBERS]
    assert [set(entry) for entry in kme.description["saes"]] == [SAE_MEMBERS] * 3


def test_demo_json_names_files_that_exist_and_processes_that_run(kme: Demo) -> None:
    saes = kme.description["saes"]
    paths = [kme.description["ca"], kme.kme["config"], kme.kme["store"], kme.kme["softhsm_conf"]]
    paths += [sae[name] for sae in saes for name in ("cert", "key", "bundle")]
    assert [path for path in paths if not Path(path).is_file()] == []
    assert [sae["id"] for sae in saes] == ["sae-1", "sae-2", "sae-3"]
    assert {sae["kme"] for sae in saes} == {kme.kme["id"]}
    for sae in saes:
        assert Path(sae["bundle"]).read_text() == Path(sae["cert"]).read_text() + Path(sae["key"]).read_text()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in kme.kme["pids"]]
    assert [command[-2] for command in commands] == [b"serve", b"upkeep"]


def test_what_up_was_asked_for_is_what_runs(kme: Demo) -> None:
    assert kme.kme["url"] == f"https://localhost:{kme.port}"
    assert len(kme.workers()) == 2
    assert kme.stored("sae-1", "sae-2") <= 500


def test_private_keys_and_pins_are_for_their_owner_alone(kme: Demo) -> None:
    private = [Path(sae[name]) for sae in kme.description["saes"] for name in ("key", "bundle")]
    private += [kme.config.parent / name for name in ("pin", "so-pin", "server/key.pem")]
    private += [kme.directory / "ca" / "ca.key"]
    assert [path for path in private if path.stat().st_mode & 0o777 != 0o400] == []


# Starting and stopping ------------------------------------------------------------------------------------------


def test_state_survives_down_and_up_on_another_port(tmp_path: Path) -> None:
    with start_demo(tmp_path, saes=3, keys=300) as first:
        owed = first.enc("sae-1", "sae-2", number=7)
        authority = Path(first.description["ca"]).read_bytes()
    with start_demo(tmp_path, saes=3, keys=300) as again:
        assert again.port != first.port
        assert again.stored("sae-1", "sae-2") == 300 - 7
        check_same(again.dec("sae-2", "sae-1", list(owed)), owed)
        assert Path(again.description["ca"]).read_bytes() == authority
        assert again.description["saes"] == first.description["saes"]
        deliveries = [row for row in again.log_rows() if row["event"] == "key.deliver"]
        assert [len(row["key_IDs"]) for row in deliveries] == [7]


def test_up_while_it_runs_says_so_and_changes_nothing(kme: Demo) -> None:
    again = run_cli("demo", "up", str(kme.directory), "--port", str(free_port()))
    assert b"runs already" in again.stdout
    assert json.loads((kme.directory / "demo.json").read_text()) == kme.description
    assert kme.health() == 200


@pytest.mark.parametrize("victim", ["serve", "upkeep"])
def test_up_starts_what_has_died(tmp_path: Path, victim: str) -> None:
    with start_demo(tmp_path, keys=100) as demo:
        pid = demo.server_pid if victim == "serve" else demo.upkeep_pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not _runs(pid))
        if victim == "serve":
            until(lambda: not _listens(demo.port), 30, "the orphaned workers end too")
        run_cli("demo", "up", str(tmp_path), "--port", str(demo.port))
        pids = json.loads((tmp_path / "demo.json").read_text())["kmes"][0]["pids"]
        assert [_runs(pid) for pid in pids] == [True, True]
        assert demo.health() == 200


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_down_ends_every_process_and_can_be_said_twice(tmp_path: Path) -> None:
    with start_demo(tmp_path, keys=100) as demo:
        pids = [*demo.kme["pids"], *demo.workers()]
        stopped = run_cli("demo", "down", str(tmp_path))
        assert all(str(pid).encode() in stopped.stdout for pid in demo.kme["pids"])
        assert [pid for pid in pids if _runs(pid)] == []
        assert not _listens(demo.port)
        assert b"nothing was running" in run_cli("demo", "down", str(tmp_path)).stdout
        assert json.loads((tmp_path / "demo.json").read_text())["kmes"][0]["pids"] == []


def test_down_where_there_is_no_demo_is_no_error(tmp_path: Path) -> None:
    assert b"nothing was running" in run_cli("demo", "down", str(tmp_path)).stdout


def test_a_taken_port_is_a_clear_error_and_leaves_nothing_running(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = run_cli("demo", "up", str(tmp_path), "--port", str(port), check=False)
    assert refused.returncode == 1
    assert f"port {port} is taken".encode() in refused.stderr
    assert b"--port" in refused.stderr
    assert b"Traceback" not in refused.stderr
    assert b"nothing was running" in run_cli("demo", "down", str(tmp_path)).stdout


def test_show_exchanges_a_key_and_prints_none(tmp_path: Path) -> None:
    """Every key of the pool is known to this test, whichever one is shown."""
    material = os.urandom(64 * 32)
    with start_demo(tmp_path, saes=3, keys=0) as demo:
        demo.cli("deposit", "-", "--link", "local", "--format", "binary", stdin=material)
    shown = run_cli("demo", "show", str(tmp_path), "--once", "--port", str(free_port()))
    printed = shown.stdout + shown.stderr
    assert b"both have the same 256 bits" in printed
    keys = [material[start : start + 32] for start in range(0, len(material), 32)]
    forms = [form for key in keys for form in (key, key.hex().encode(), key.hex().upper().encode(), b64encode(key))]
    assert [form for form in forms if form in printed] == []
    assert re.findall(rb"[A-Za-z0-9+/]{43}=", printed) == [], "something of a key's length is printed"
    assert b"nothing was running" in run_cli("demo", "down", str(tmp_path)).stdout


# Certificates and TLS -------------------------------------------------------------------------------------------


def test_the_server_certificate_names_localhost_and_the_kme(kme: Demo) -> None:
    certificate = x509.load_pem_x509_certificate((kme.config.parent / "server" / "cert.pem").read_bytes())
    names = _names(certificate)
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"urn:qkd:kme:{kme.kme['id']}"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_the_kme_answers_at_each_of_its_names(kme: Demo, host: str) -> None:
    with kme.session("sae-1") as client:
        answer = client.get(f"https://{host}:{kme.port}/api/v1/keys/sae-2/status", timeout=30)
    assert answer.status_code == 200


def test_sae_certificates_name_the_sae_and_nothing_else(kme: Demo) -> None:
    for sae in kme.description["saes"]:
        certificate = x509.load_pem_x509_certificate(Path(sae["cert"]).read_bytes())
        uris = _names(certificate).get_values_for_type(x509.UniformResourceIdentifier)
        assert uris == [f"urn:qkd:sae:{sae['id']}"]
        assert len(list(_names(certificate))) == 1
        assert [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [sae["id"]]


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
def test_tls_1_3_and_1_2_are_spoken(kme: Demo, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=kme.description["ca"])
    context.minimum_version = context.maximum_version = version
    assert _handshake(kme, context) == version.name.replace("_", ".")


def test_tls_1_1_is_refused_by_the_server(kme: Demo) -> None:
    context = ssl.create_default_context(cafile=kme.description["ca"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # otherwise this side would not even offer it
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError) as refused:
        _handshake(kme, context)
    assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION", "the alert is what the server sent"


def _handshake(kme: Demo, context: ssl.SSLContext) -> str | None:
    with (
        socket.create_connection(("127.0.0.1", kme.port), timeout=30) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as tls,
    ):
        return tls.version()


def test_a_client_certificate_of_another_ca_is_refused(kme: Demo, tmp_path: Path) -> None:
    """The same names, from a CA of the same name with another key."""
    certificate, key = Authority(tmp_path / "ca").issue_sae("sae-1", tmp_path / "sae-1")
    with kme.session(None) as client:
        client.cert = (str(certificate), str(key))
        with pytest.raises(requests.exceptions.ConnectionError):
            client.get(kme.url("sae-2/status"), timeout=30)


def test_a_client_without_certificate_is_answered_401_in_json(kme: Demo) -> None:
    for method in ("status", "enc_keys", "dec_keys?key_ID=00000000-0000-4000-8000-000000000000"):
        answer = kme.get(None, f"sae-2/{method}")
        assert answer.status_code == 401
        assert answer.headers["Content-Type"] == "application/json"
        assert list(answer.json()) == ["message"]


# Keys ---------------------------------------------------------------------------------------------------------


def test_every_ordered_pair_exchanges_keys(kme: Demo) -> None:
    for master, slave in itertools.permutations(kme.sae_ids, 2):
        fetched = kme.enc(master, slave, number=2)
        check_same(kme.dec(slave, master, list(fetched)), fetched)


def test_a_multicast_key_is_collected_once_by_each_slave(kme: Demo) -> None:
    fetched = kme.enc("sae-1", "sae-2", additional_slave_SAE_IDs=["sae-3"])
    body = {"key_IDs": [{"key_ID": key_id} for key_id in fetched]}
    for slave in ("sae-3", "sae-2"):
        check_same(kme.dec(slave, "sae-1", list(fetched)), fetched)
        assert kme.post(slave, "sae-1/dec_keys", body).status_code == 400
    assert kme.post("sae-1", "sae-1/dec_keys", body).status_code == 401


# Several KMEs: what is made ------------------------------------------------------------------------------------


def world(directory: Path, kmes: int, saes: int, keys: int) -> World:
    """A demo that is made and not started; every token is looked at by commands in processes of their own."""
    return World(directory, 20_000, saes=saes, keys=keys, workers=1, say=lambda _: None, kmes=kmes)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three KMEs and five SAEs; 300 keys, three blocks, on each link that is used."""
    made = world(tmp_path_factory.mktemp("three"), kmes=3, saes=5, keys=300)
    made.prepare()
    return made


def rows(kme: DemoKme, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(kme.home / "store.sqlite")) as connection:
        return connection.execute(statement).fetchall()


def blocks(kme: DemoKme) -> dict[str, set[tuple[str, int]]]:
    """Block ids and key counts by link."""
    found: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for link_id, block_id, count in rows(kme, "SELECT link_id, block_id, key_count FROM block"):
        found[link_id].add((block_id, count))
    return dict(found)


def link_keys(kme: DemoKme) -> dict[str, str]:
    """Check values by link, from the transcript of the ceremony."""
    made = evidence_of(kme.home / "ceremony" / "transcript.jsonl")
    keys = (one for one in made if one.get("label", "").startswith("link/"))
    return {one["label"].removeprefix("link/"): one["check_value"] for one in keys}


LINKS_OF = {
    "kme-1": {"kme-1.kme-2", "kme-1.kme-3"},
    "kme-2": {"kme-1.kme-2", "kme-2.kme-3"},
    "kme-3": {"kme-1.kme-3", "kme-2.kme-3"},
}


def test_every_kme_has_a_token_a_store_a_configuration_and_certificates_of_its_own(three: World) -> None:
    ports = []
    for kme in three.members:
        settings = configuration.load(kme.config_path)
        assert settings.kme_id == kme.kme_id
        assert settings.store == kme.home / "store.sqlite"
        assert len(list((kme.home / "tokens").iterdir())) == 1
        assert {link.link_id: link.peer for link in settings.links}["local"] == kme.kme_id
        assert {link.link_id for link in settings.links} == LINKS_OF[kme.kme_id] | {"local"}
        urls = {peer.id: peer.url for peer in settings.peer}
        assert urls == {other.kme_id: other.peer_url for other in three.members if other != kme}
        ports.append([int(address.rpartition(":")[2]) for address in (settings.server.bind[0], kme.peer_url)])
    assert ports == [[20_000, 20_010], [20_001, 20_011], [20_002, 20_012]]


def test_saes_are_spread_and_every_kme_knows_all_of_them(three: World) -> None:
    spread = [("sae-1", "kme-1"), ("sae-2", "kme-2"), ("sae-3", "kme-3"), ("sae-4", "kme-1"), ("sae-5", "kme-2")]
    pairs = sorted(itertools.permutations(three.sae_ids, 2))
    for kme in three.members:
        assert rows(kme, "SELECT sae_id, kme_id FROM sae ORDER BY sae_id") == spread
        assert rows(kme, "SELECT master, slave FROM pair ORDER BY master, slave") == pairs


def test_both_ends_of_a_link_hold_blocks_of_the_same_ids(three: World) -> None:
    held = {kme.kme_id: blocks(kme) for kme in three.members}
    for (one, its), (other, others) in itertools.combinations(held.items(), 2):
        assert its[f"{one}.{other}"] == others[f"{one}.{other}"]
        assert sum(count for _, count in its[f"{one}.{other}"]) == 300
    assert {kme_id: set(links) - {"local"} for kme_id, links in held.items()} == LINKS_OF


def test_a_local_link_has_keys_where_two_saes_can_use_them(three: World) -> None:
    assert [kme.kme_id for kme in three.members if "local" in blocks(kme)] == ["kme-1", "kme-2"]


def test_both_ends_of_a_link_have_its_key(three: World) -> None:
    values = {kme.kme_id: link_keys(kme) for kme in three.members}
    assert {kme_id: set(links) for kme_id, links in values.items()} == LINKS_OF
    for one, other in itertools.combinations(values, 2):
        assert values[one][f"{one}.{other}"] == values[other][f"{one}.{other}"]
    assert len({value for links in values.values() for value in links.values()}) == 3


def test_the_key_of_a_link_is_in_the_token_and_the_log(three: World) -> None:
    for kme in three.members:
        (row,) = (json.loads(text) for (text,) in rows(kme, "SELECT text FROM log") if "ceremony.held" in text)
        made = {label: value for label, value in row["made"].items() if label.startswith("link/")}
        assert made == {f"link/{link}": value for link, value in link_keys(kme).items()}
        proved = run_cli("ceremony", "verify", str(kme.home / "ceremony" / "plan.toml"), "--json")
        assert json.loads(proved.stdout)["digest"] == row["transcript"]


def test_nothing_of_what_both_ends_got_is_left_outside_of_the_tokens(three: World) -> None:
    assert not (three.directory / "links").exists()


def test_what_is_not_ready_yet_is_named(three: World) -> None:
    """Nothing runs here that could confirm a block."""
    found = {f"{kme}: 3 blocks of link {link} are unconfirmed" for kme, links in LINKS_OF.items() for link in links}
    assert set(unready_links(three)) == found


def test_peers_have_a_ca_of_their_own_and_serve_and_call_with_one_certificate(three: World) -> None:
    authorities = {}
    for name in ("ca", "peer-ca"):
        authorities[name] = x509.load_pem_x509_certificate((three.directory / name / "ca.pem").read_bytes())
    assert authorities["ca"].subject != authorities["peer-ca"].subject
    for kme in three.members:
        server, peer = (
            x509.load_pem_x509_certificate((kme.home / part / "cert.pem").read_bytes()) for part in ("server", "peer")
        )
        server.verify_directly_issued_by(authorities["ca"])
        peer.verify_directly_issued_by(authorities["peer-ca"])
        assert _names(peer) == _names(server)
        usage = peer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        assert (kme.home / "peer" / "key.pem").stat().st_mode & 0o777 == 0o400


def test_what_is_made_is_kept(three: World) -> None:
    """Also when another number of KMEs is asked for: it is the directory's."""
    before = [(blocks(kme), link_keys(kme), (kme.home / "pin").read_bytes()) for kme in three.members]
    again = replace(three, kmes=2).as_made()
    assert again.kmes == 3
    again.prepare()
    assert [(blocks(kme), link_keys(kme), (kme.home / "pin").read_bytes()) for kme in three.members] == before


def test_a_start_that_failed_at_one_end_is_completed_by_the_next(tmp_path: Path) -> None:
    """One end has keys and blocks of the link already; the other gets the same."""
    two = world(tmp_path / "demo", kmes=2, saes=2, keys=200)
    far = two.members[1]
    far.home.mkdir(parents=True)
    (far.home / "so-pin").write_text("known-to-all")  # so that the ceremony there refuses it
    two.members[0].home.mkdir()
    with pytest.raises(OperatorFault, match=r"so-pin can be read by others"):
        two.prepare()
    assert link_keys(two.members[0]).keys() == {"kme-1.kme-2"}
    left = list((two.directory / "links").iterdir())
    assert [path.stat().st_mode & 0o777 for path in left] == [0o400] * len(left)
    (far.home / "so-pin").chmod(0o400)
    two.prepare()
    assert link_keys(two.members[0]) == link_keys(far)
    assert blocks(two.members[0])["kme-1.kme-2"] == blocks(far)["kme-1.kme-2"]
    assert not (two.directory / "links").exists()


# Several KMEs: what runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Two KMEs that run, with empty pools."""
    with start_demo(tmp_path_factory.mktemp("two"), kmes=2, saes=3, keys=0, workers=1) as demo:
        yield demo


def test_demo_json_of_several_kmes_says_more_and_nothing_else(two: Demo) -> None:
    assert two.description.keys() == {"ca", "peer_ca", "kmes", "saes"}
    more = {"peer_url", "peer_cert", "peer_key"}
    assert [set(entry) for entry in two.description["kmes"]] == [KME_MEMBERS | more] * 2
    assert [sae["kme"] for sae in two.description["saes"]] == ["kme-1", "kme-2", "kme-1"]
    assert two.kme_ids == ["kme-1", "kme-2"]
    for number, entry in enumerate(two.description["kmes"]):
        assert entry["url"] == f"https://localhost:{two.port + number}"
        assert entry["peer_url"] == f"https://localhost:{two.port + 10 + number}"


def test_every_process_of_every_kme_runs_and_every_kme_answers(two: Demo) -> None:
    for kme_id in two.kme_ids:
        kme = two.at(kme_id)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in kme.kme["pids"]]
        assert [command[-2] for command in commands] == [b"serve", b"upkeep", b"serve-peers"]
        assert {command[-3].decode() for command in commands} == {kme.kme["config"]}
        assert kme.health() == 200
        assert _listens(int(kme.kme["peer_url"].rpartition(":")[2]))


def test_an_sae_asks_the_kme_that_serves_it(two: Demo) -> None:
    for sae_id in two.sae_ids:
        assert two.url("sae-9/status", sae_id).startswith(two.serving(sae_id).kme["url"])
    assert two.at("kme-2").url("sae-2/status", "sae-1").startswith(two.at("kme-2").kme["url"])
    assert two.at("kme-2").store != two.store


def test_down_ends_every_process_of_every_kme_and_up_resumes_all(tmp_path: Path) -> None:
    with start_demo(tmp_path, kmes=2, saes=2, keys=0, workers=1) as demo:
        pids = [pid for kme in demo.description["kmes"] for pid in kme["pids"]]
        assert len(pids) == 6
        os.kill(demo.at("kme-2").peers_pid, signal.SIGKILL)
        run_cli("demo", "up", str(tmp_path), "--port", str(free_ports(2)))  # one is missing: all are started again
        again = json.loads((tmp_path / "demo.json").read_text())
        assert [kme["id"] for kme in again["kmes"]] == ["kme-1", "kme-2"]
        new = [pid for kme in again["kmes"] for pid in kme["pids"]]
        assert [_runs(pid) for pid in [*pids, *new]] == [False] * 6 + [True] * 6
        run_cli("demo", "down", str(tmp_path))
        assert [pid for pid in new if _runs(pid)] == []


def test_every_taken_port_is_named(tmp_path: Path) -> None:
    port = free_ports(2)
    with socket.create_server(("127.0.0.1", port + 1)), socket.create_server(("127.0.0.1", port + 10)):
        refused = run_cli("demo", "up", str(tmp_path), "--kmes", "2", "--port", str(port), check=False)
    assert refused.returncode == 1
    assert f"ports {port + 1}, {port + 10} are taken".encode() in refused.stderr.replace(b"\n", b" ")
    assert list(tmp_path.glob("kme-*")) == []
