"""Does `hsmkme demo` give a KME that can be relied on: its interface, its certificates, its state?"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.x509.oid import NameOID

from hsmkme.demo.authority import Authority
from tests.load import check_same
from tests.world import Demo, free_port, run_cli, start_demo, until

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
