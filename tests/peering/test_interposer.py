"""Does the network between two KMEs do what its rules say, and nothing else?"""

from __future__ import annotations

import http.client
import http.server
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import requests
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.peering import fates
from tests.peering.interposer import Files, Interposer
from tests.peering.wire import Ended, read
from tests.pki import Request, TestAuthority


@dataclass
class Receiver:
    """A plain HTTPS server that keeps what it got; each answer says how many it was."""

    url: str = ""
    got: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def bodies(self) -> list[bytes]:
        with self.changed:
            return [body for *_, body in self.got]

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.got) >= count, 30)


@dataclass
class Site:
    """A's files, B's, the CA's; B itself; the network; A's session."""

    ca: str
    a: Files
    b: Files
    receiver: Receiver
    network: Interposer
    session: requests.Session

    def send(self, body: bytes = b'{"x": 1}', path: str = "keys/assign", seconds: float = 30) -> requests.Response:
        return self.session.post(f"{self.network.url}/kme-peer/v1/{path}", data=body, timeout=seconds)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Files, Files]:
    authority, home = TestAuthority(), tmp_path_factory.mktemp("peers")
    a = authority.issue(home / "a", Request("kme-1", uris=["urn:qkd:kme:kme-1"]))
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    b = authority.issue(home / "b", Request("kme-2", uris=["urn:qkd:kme:kme-2"], dns=["localhost"], usage=usage))
    ca = home / "ca.pem"
    ca.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    return str(ca), a, b


@contextmanager
def received(ca: str, b: Files) -> Iterator[Receiver]:
    receiver = Receiver()

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            subject = self.connection.getpeercert()["subject"][0][0][1]  # type: ignore[attr-defined]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            whole = len(body) == int(self.headers["Content-Length"])
            with receiver.changed:
                receiver.got.append((self.command, self.path, dict(self.headers), body))
                receiver.callers.append(subject)
                answer = b'{"answer": %d}' % len(receiver.got)
                receiver.changed.notify_all()
            if whole:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.send_header("X-Mark", "marked")
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*b)
    context.load_verify_locations(ca)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False

        def finish_request(self, request: object, address: object) -> None:
            # in the connection's own thread, so that one slow handshake holds up nobody
            with context.wrap_socket(request, server_side=True) as connection:  # type: ignore[call-overload]
                super().finish_request(connection, address)  # type: ignore[arg-type]

        def handle_error(self, request: object, address: object) -> None:
            pass  # connections that end in the middle are what is tested

    with Server(("127.0.0.1", 0), Answers) as server:
        receiver.url = f"https://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def site(files: tuple[str, Files, Files]) -> Iterator[Site]:
    ca, a, b = files
    before = threading.active_count()
    with (
        received(ca, b) as receiver,
        Interposer(shows=b, speaks_as=a, ca=ca, to=receiver.url) as network,
        requests.Session() as session,
    ):
        session.cert, session.verify, session.trust_env = a, ca, False
        yield Site(ca, a, b, receiver, network, session)
    assert threading.active_count() == before


def lost(action: Callable[[], object]) -> None:
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        action()


def fates_of(site: Site) -> list[tuple[str, int | None]]:
    site.network.wait(lambda log: all(seen.ended for seen in log))
    return [(seen.fate, seen.status) for seen in site.network.log]


def test_what_no_rule_names_passes_unchanged_under_the_senders_certificate(site: Site) -> None:
    response = site.session.post(
        f"{site.network.url}/kme-peer/v1/hello?a=%20b", data=b"\x00\xff" * 9, headers={"Signature": "sig=:AAA=:"}
    )
    assert (response.status_code, response.json(), response.headers["X-Mark"]) == (200, {"answer": 1}, "marked")
    method, path, headers, body = site.receiver.got[0]
    assert (method, path, body) == ("POST", "/kme-peer/v1/hello?a=%20b", b"\x00\xff" * 9)
    assert headers == dict(response.request.headers) | {"Host": site.network.url.removeprefix("https://")}
    assert site.receiver.callers == ["kme-1"]
    assert fates_of(site) == [("Pass", 200)]


def test_a_connection_carries_one_message_after_another(site: Site) -> None:
    context = ssl.create_default_context(cafile=site.ca)
    context.load_cert_chain(*site.a)
    connection = http.client.HTTPSConnection(site.network.url.removeprefix("https://"), context=context, timeout=30)
    connection.connect()
    own = connection.sock
    for number in (1, 2, 3):
        connection.request("POST", "/kme-peer/v1/hello", b"x")
        assert connection.getresponse().read() == b'{"answer": %d}' % number
        assert connection.sock is own
    connection.close()


def test_messages_in_chunks_are_read_whole() -> None:
    head, body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"
    stream = io.BytesIO(head + body + head + body[:-3])
    assert read(stream).body == body
    with pytest.raises(Ended):
        read(stream)


def test_who_has_no_certificate_is_not_forwarded(site: Site) -> None:
    lost(lambda: requests.post(site.network.url, data=b"x", verify=site.ca, timeout=30))
    assert site.receiver.got == []
    assert site.network.log == []


def test_older_tls_is_refused(site: Site) -> None:
    context = ssl.create_default_context(cafile=site.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*site.a)
    host, port = "localhost", int(site.network.url.rsplit(":", 1)[1])
    with socket.create_connection((host, port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname=host)


def test_a_request_is_dropped(site: Site) -> None:
    site.network.rule(fates.DropRequest())
    lost(site.send)
    assert site.receiver.got == []
    assert fates_of(site) == [("DropRequest", None)]


def test_an_answer_is_dropped(site: Site) -> None:
    site.network.rule(fates.DropAnswer())
    lost(site.send)
    assert len(site.receiver.got) == 1


def test_a_delayed_message_arrives_though_its_sender_gave_up(site: Site) -> None:
    site.network.rule(fates.Delay(1), nth=2)
    site.send()  # the connection stands: what times out is the answer alone
    with pytest.raises(requests.RequestException):
        site.send(seconds=0.2)
    site.receiver.wait(2)


@pytest.mark.parametrize("together", [False, True])
def test_a_duplicate_arrives_twice_and_is_answered_once(site: Site, together: bool) -> None:
    site.network.rule(fates.Duplicate(answer=2, together=together), nth=1)
    site.network.rule(fates.Duplicate(answer=1), nth=2)
    assert site.send().json()["answer"] in ({1, 2} if together else {2})
    assert site.send().json() == {"answer": 3}
    assert site.receiver.bodies() == [b'{"x": 1}'] * 4


def test_a_message_held_back_arrives_after_the_next(site: Site) -> None:
    site.network.rule(fates.HoldBack(), nth=1)
    lost(lambda: site.send(b"first"))
    site.send(b"second")
    site.receiver.wait(2)
    assert site.receiver.bodies() == [b"second", b"first"]


def test_a_message_held_back_is_answered_if_its_sender_waits(site: Site) -> None:
    site.network.rule(fates.HoldBack(hang_up=False), nth=1)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(requests.post, site.network.url, data=b"first", cert=site.a, verify=site.ca, timeout=30)
        site.network.wait(lambda log: len(log) == 1)
        assert site.send(b"second").json() == {"answer": 1}
        assert first.result().json() == {"answer": 2}


def test_an_old_request_is_replayed_before_a_new_one_or_at_any_time(site: Site) -> None:
    site.network.rule(fates.Replay(0), nth=2)
    site.send(b"old")
    assert site.send(b"new").json() == {"answer": 3}
    assert site.network.replay(0) == 200
    assert site.receiver.bodies() == [b"old", b"old", b"new", b"old"]


def test_a_request_is_truncated(site: Site) -> None:
    site.network.rule(fates.TruncateRequest(3), nth=1)
    site.network.rule(fates.TruncateRequest(2, mend=True), nth=2)
    lost(lambda: site.send(b"abcdef"))
    site.receiver.wait(1)
    assert site.send(b"abcdef").status_code == 200
    assert site.receiver.bodies() == [b"abc", b"ab"]


def test_an_answer_is_truncated(site: Site) -> None:
    site.network.rule(fates.TruncateAnswer(4))
    response = site.send()
    assert (response.content, response.headers["Content-Length"]) == (b'{"an', "4")


@pytest.mark.parametrize("after", [None, 0, 10])
def test_the_connection_ends_in_the_middle_of_an_answer(site: Site, after: int | None) -> None:
    site.network.rule(fates.CutAnswer(after))
    lost(site.send)
    assert len(site.receiver.got) == 1


def test_a_bit_is_altered_on_the_way(site: Site) -> None:
    site.network.rule(fates.AlterRequest(at=0), nth=1)
    site.network.rule(fates.AlterRequest(header="X-Sent"), nth=2)
    site.network.rule(fates.AlterAnswer(at=-2), nth=3)
    site.network.rule(fates.AlterAnswer(header="x-mark", at=0), nth=4)
    site.session.headers["X-Sent"] = "abc"
    answers = [site.send(b"abc") for _ in range(4)]
    assert site.receiver.bodies() == [b"`bc", b"abc", b"abc", b"abc"]
    assert [headers["X-Sent"] for _, _, headers, _ in site.receiver.got] == ["abc", "acc", "abc", "abc"]
    assert answers[2].content == b'{"answer": 2}'
    assert [answer.headers["X-Mark"] for answer in answers] == ["marked", "marked", "marked", "larked"]


def test_somebody_else_answers(site: Site) -> None:
    site.network.rule(fates.Nonsense(502, b"no"), nth=1)
    site.network.rule(fates.Nonsense(forwarded=True), nth=2)
    assert [(r.status_code, r.content) for r in (site.send(), site.send())] == [
        (502, b"no"),
        (200, b"<html>welcome</html>"),
    ]
    assert len(site.receiver.got) == 1


def test_an_answer_comes_slowly_and_not_for_ever(site: Site) -> None:
    site.network.rule(fates.Slowly(pause=0.001, at_most=30), nth=1)
    site.network.rule(fates.Slowly(pause=0.01, at_most=0.1), nth=2)
    assert site.send().json() == {"answer": 1}
    lost(site.send)


def test_rules_count_what_they_name_and_the_first_that_applies_decides(site: Site) -> None:
    site.network.rule(fates.Nonsense(599), "POST", "keys/assign", nth=2)
    site.network.rule(fates.Nonsense(598), "POST", "keys/assign", nth=range(2, 4))
    site.network.rule(fates.Nonsense(597), "GET")
    paths = ["keys/assign", "hello", "keys/assign", "keys/assign", "keys/assign"]
    assert [site.send(path=path).status_code for path in paths] == [200, 200, 599, 598, 200]
    site.network.clear()
    assert site.send().status_code == 200
    assert [seen.path.removeprefix("/kme-peer/v1/") for seen in site.network.log] == [*paths, "keys/assign"]


def test_a_receiver_that_is_away_is_a_lost_message(files: tuple[str, Files, Files]) -> None:
    ca, a, b = files
    with received(ca, b) as receiver:
        pass
    with Interposer(shows=b, speaks_as=a, ca=ca, to=receiver.url) as network:
        lost(lambda: requests.post(network.url, data=b"x", cert=a, verify=ca, timeout=30))
        network.wait(lambda log: [(seen.fate, seen.status, seen.ended) for seen in log] == [("Pass", None, True)])


def test_it_ends_while_messages_are_under_way(files: tuple[str, Files, Files]) -> None:
    """Held back, delayed, answered slowly, or on a connection that says nothing: nothing keeps it."""
    ca, a, b = files
    before = threading.active_count()
    with received(ca, b) as receiver, ThreadPoolExecutor(4) as threads:
        with Interposer(shows=b, speaks_as=a, ca=ca, to=receiver.url) as network:
            for number, fate in enumerate(
                [fates.Delay(3600), fates.Slowly(pause=600, at_most=3600), fates.Delay(3600)]
            ):
                network.rule(fate, nth=number + 1)
            network.rule(fates.HoldBack(hang_up=False), nth=4)
            sent = [
                threads.submit(requests.post, network.url, data=b"x", cert=a, verify=ca, timeout=60) for _ in range(4)
            ]
            network.wait(lambda log: len(log) == 4)
        for future in sent:
            lost(future.result)
    assert threading.active_count() == before
