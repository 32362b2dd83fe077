"""What hostile clients send. Everything comes from the dice, so that a seed gives the same moves again."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from typing import Any
from uuid import UUID

PREFIX = "/api/v1/keys/"
BODY_LIMIT = 65536


class Then(Enum):
    """What the client does when it has sent its bytes."""

    READ_ONE = auto()
    """Read one answer and go on: the request is well framed."""

    READ_ALL = auto()
    """End its side, and read what comes until the server ends its own."""

    LEAVE = auto()
    """Close without reading. Only for what is not whole and for what delivers nothing."""

    RESET = auto()
    """The same with a TCP reset."""


@dataclass(frozen=True, slots=True)
class Move:
    """``pieces`` are sent in records of their own, with a pause between if ``slow``."""

    kind: str
    pieces: Sequence[bytes]
    then: Then
    slow: bool = False

    def __str__(self) -> str:
        data = b"".join(self.pieces)
        return f"{self.kind} {self.then.name} {data[:600]!r} ({len(data)} bytes)"


@dataclass
class Hand:
    """Who plays, and which keys it may still collect: (key_ID, master, slave)."""

    dice: Random
    saes: Sequence[str]
    collectable: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=50))
    caller: str = ""
    """The SAE of the connection that the move is for, empty if none."""

    @property
    def other(self) -> str:
        """Another SAE than the caller."""
        return self.dice.choice([sae_id for sae_id in self.saes if sae_id != self.caller])


def request(
    method: str, target: str, body: bytes | None = None, fields: Sequence[str] = (), json_type: bool = True
) -> bytes:
    """A well-framed request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
    if body is not None:
        lines += [f"Content-Length: {len(body)}", *(["Content-Type: application/json"] if json_type else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


# Good requests ------------------------------------------------------------------------------------


def enc_keys(hand: Hand) -> bytes:
    dice, target = hand.dice, f"{PREFIX}{hand.other}/enc_keys"
    if dice.random() < 0.4:
        return request("GET", target + dice.choice(["", "?number=2", "?size=128", "?number=1&size=512"]))
    members: dict[str, Any] = {}
    if dice.random() < 0.7:
        members["number"] = dice.choice([1, 1, 2, 3])
    if dice.random() < 0.3:
        members["size"] = dice.choice([64, 256, 264, 512, 1024])
    if dice.random() < 0.01:
        members = {"number": 128}
    return request("POST", target, json.dumps(members).encode())


def dec_keys(hand: Hand) -> bytes:
    """Of a key that the caller may have, if there is one; it may have it only once."""
    mine = [entry for entry in hand.collectable if entry[2] == hand.caller]
    if not mine:
        return request("GET", f"{PREFIX}{hand.other}/dec_keys?key_ID={UUID(int=hand.dice.getrandbits(128))}")
    key_id, master, _ = entry = hand.dice.choice(mine)
    if hand.dice.random() < 0.8:
        hand.collectable.remove(entry)
    if hand.dice.random() < 0.5:
        return request("GET", f"{PREFIX}{master}/dec_keys?key_ID={key_id}")
    return request("POST", f"{PREFIX}{master}/dec_keys", json.dumps({"key_IDs": [{"key_ID": key_id}]}).encode())


def status(hand: Hand) -> bytes:
    paths = [f"{PREFIX}{hand.other}/status"] * 4 + ["/health", "/openapi.json"]
    return request("GET", hand.dice.choice(paths))


def good(hand: Hand) -> bytes:
    return hand.dice.choice([enc_keys, enc_keys, dec_keys, status])(hand)


# Wrong in what they say ---------------------------------------------------------------------------

NAMES = ["number", "size", "additional_slave_SAE_IDs", "extension_mandatory", "extension_optional", "key_IDs"]
SCALARS: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 129, 256, 100, 1.0, 1e308, -0.0, 1 << 31, 1 << 63, 1 << 64, 10**400),
    *("", " ", "1", "256", "sae-1", "sae-2", "sae-9", "nobody", "\0", "\ud800", "\u202e", "💥", "a" * 5000, "%00"),
    *("00000000-0000-0000-0000-000000000000", "'; DROP TABLE key; --", "../../etc/passwd", "${jndi:ldap://x}"),
]


def value(dice: Random, depth: int = 0) -> Any:
    roll = dice.random()
    if depth > 3 or roll < 0.6:
        return dice.choice(SCALARS)
    if roll < 0.8:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    names = [*NAMES, "key_ID", "key_ID_extension", "", "x", "__proto__", "\0"]
    return {dice.choice(names): value(dice, depth + 1) for _ in range(dice.randrange(4))}


NOT_JSON = [b"[" * 30_000, b'{"a":' * 9000, b'{"number":1,"number":1}', b'{"number":NaN}', b"\xff" * 50]


def odd_json(dice: Random) -> bytes:
    """JSON with the members of the standard and values that are not theirs; at times it is not JSON at all."""
    members = {name: value(dice) for name in dice.sample(NAMES, dice.randint(1, 3))}
    text = json.dumps(members if dice.random() < 0.9 else value(dice), ensure_ascii=dice.random() < 0.8)
    data = text.encode("utf-8", "surrogatepass")
    roll = dice.random()
    if roll < 0.1:
        return mutated(dice, data)
    if roll < 0.15:
        return dice.choice(NOT_JSON)
    if roll < 0.2:
        return data.decode("utf-8", "replace").encode(dice.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return data


def body(hand: Hand) -> bytes:
    dice = hand.dice
    fields = [] if dice.random() < 0.9 else ["Content-Type: " + dice.choice(["text/plain", "a/xml", ";;", ""])]
    target = f"{PREFIX}{hand.other}/{dice.choice(['enc_keys', 'dec_keys'])}"
    return request("POST", target, odd_json(dice), fields, json_type=not fields)


ODD_SEGMENTS = ["", ".", "..", "%2e%2e", "%", "%zz", "%00", "%ff", "a%2fb", "%20", "+", ";x=1", "sae-9", "*", "%252"]


def path(hand: Hand) -> bytes:
    """A path or a query that no SAE writes."""
    dice = hand.dice
    segments = [dice.choice(ODD_SEGMENTS), dice.choice(["status", "enc_keys", "dec_keys", "STATUS", "keys", ""])]
    if dice.random() < 0.3:
        segments.insert(dice.randrange(3), dice.choice(ODD_SEGMENTS))
    if dice.random() < 0.05:
        segments[0] = dice.choice(["a" * 7000, "%41" * 2500, "/" * 5000])
    names = ["number", "size", "key_ID", "x", "", "%ff"]
    values = ["", "0", "-1", "1e9", "999999999999999999999", "%ff", "%00", "1&number=1", "&" * 50, "[]"]
    query = f"?{dice.choice(names)}={dice.choice(values)}" if dice.random() < 0.5 else ""
    start = dice.choice([PREFIX] * 8 + ["/", "//", "/api/v1/", "/API/v1/keys/", "http://x" + PREFIX, "ftp://x/"])
    return request(dice.choice(["GET", "GET", "POST"]), start + "/".join(segments) + query, fields=odd_fields(dice))


METHODS = ["OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "PROPFIND", "CONNECT", "BREW", "GETT", "M-SEARCH", "QUERY"]


def method(hand: Hand) -> bytes:
    """Another method than GET and POST: none of them may consume a key."""
    called = hand.dice.choice([*METHODS, "get", "G", "A" * 30])
    paths = [f"{PREFIX}{hand.other}/{name}" for name in ("enc_keys", "dec_keys", "status")]
    return request(called, hand.dice.choice([*paths, "*", "/", "/health", "/openapi.json", "localhost:443"]))


ODD_FIELDS = [
    *("Connection: close", "Connection: keep-alive, upgrade", "Upgrade: h2c", "Expect: 200-ok", "Host: other", "TE: x"),
    *("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: http", "X-Forwarded-Proto: https", "SCRIPT_NAME: /x"),
    *("PATH_INFO: /x", "REMOTE_USER: sae-1", "X-SSL-Client-Cert: x", "X-HTTP-Method-Override: POST", "Cookie: a=b"),
    *("Accept: */*;q=x", "Accept-Encoding: gzip", "Authorization: Basic x", "Range: bytes=0-1", "If-Match: *"),
    *("Idempotency-Key: x", "Content-Encoding: gzip", "Content-Type: a", "A: \x80\xff", "A:" + "b" * 9000),
    *("Transfer-Encoding: chunked", "Content-Length: 0", "Expect: 100-continue", "Trailer: a", "Bad Name: x"),
]


def odd_fields(dice: Random) -> list[str]:
    """Fields that do not change how a request is framed, unless it is refused for them."""
    harmless = ODD_FIELDS[: ODD_FIELDS.index("Transfer-Encoding: chunked")]
    return dice.sample(harmless, dice.choice([0, 0, 0, 1, 1, 2, 3]))


def fields(hand: Hand) -> bytes:
    dice = hand.dice
    chosen = odd_fields(dice)
    if dice.random() < 0.1:
        chosen += [f"X-{number}: y" for number in range(dice.choice([90, 110, 1000]))]
    return request("GET", f"{PREFIX}{hand.other}/{dice.choice(['status', 'enc_keys', 'dec_keys'])}", fields=chosen)


# Wrong in how they are framed ---------------------------------------------------------------------

SPARKS = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b"\x0b", b"\x85", b"\xff"),
    *(b":", b";", b",", b"+", b"-", b"%", b"?", b"/", b"0x10", b"\x16\x03\x01\x02\x00"),
    *(b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"GET / HTTP/1.1\r\n\r\n", b" folded\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
]


def mutated(dice: Random, data: bytes) -> bytes:
    """``data`` with something inserted, replaced, repeated or left out."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place, length = dice.randint(0, len(changed)), dice.choice([0, 0, 1, 2, 10, 40])
        roll = dice.random()
        if roll < 0.6:
            spark = dice.choice(SPARKS)
        elif roll < 0.8:
            spark = dice.randbytes(dice.randint(1, 4))
        else:
            spark = bytes(changed[place : place + 30]) * 2
        changed[place : place + length] = spark
    return bytes(changed)


def chunked(dice: Random, plain: bytes) -> bytes:
    """A request with a body, its body in chunks."""
    head, _, content = plain.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunks, extension = b"", dice.choice([b"", b"", b";a=b", b' ; n="v"'])
    while content:
        size = dice.randint(1, len(content))
        chunks += b"%x%s\r\n%s\r\n" % (size, extension, content[:size])
        content = content[size:]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]) + chunks + b"0\r\n\r\n"


def oversized(hand: Hand) -> list[bytes]:
    """Too long in one way or another."""
    dice, target = hand.dice, f"{PREFIX}{hand.other}/enc_keys"
    post = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    size = dice.choice([BODY_LIMIT + 1, 100_000, 500_000])
    return dice.choice(
        [
            [request("POST", target, b" " * size)],
            [post + b"Content-Length: %d\r\n\r\n" % dice.choice([size, 10**9, 10**17]), b"{" * 1000],
            [post + b"Transfer-Encoding: chunked\r\n\r\n", *[b"4000\r\n" + b" " * 0x4000 + b"\r\n"] * 6],
            [post + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1;" + b"a" * 240 + b"\r\n \r\n"] * 300],
            [post + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", b"x" * 1000],
            [f"GET /{'a' * dice.choice([8200, 20_000])} HTTP/1.1\r\n\r\n".encode()],
            [post + b"A: " + b"a" * dice.choice([17_000, 100_000]) + b"\r\n\r\n"],
            [post + b"A: b\r\n" * 3000 + b"\r\n"],
        ]
    )


def in_pieces(dice: Random, data: bytes) -> list[bytes]:
    """``data`` in a few records, at times in many."""
    if dice.random() < 0.6:
        return [data]
    if dice.random() < 0.05:
        return [data[place : place + 1] for place in range(min(len(data), 200))] + [data[200:]]
    places = sorted(dice.randint(0, len(data)) for _ in range(dice.randint(1, 5)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


# Moves --------------------------------------------------------------------------------------------

Maker = Callable[[Hand], bytes]
WELL_FRAMED: list[tuple[Maker, int]] = [(good, 30), (body, 25), (path, 15), (fields, 12), (method, 10)]


def well_framed(hand: Hand) -> tuple[str, bytes]:
    makers, weights = zip(*WELL_FRAMED, strict=True)
    maker: Maker = hand.dice.choices(makers, weights)[0]
    return maker.__name__, maker(hand)


def move(hand: Hand) -> Move:
    """The next move on a connection with TLS."""
    dice, roll = hand.dice, hand.dice.random()
    if roll < 0.55:
        kind, data = well_framed(hand)
        slow = dice.random() < 0.02
        return Move(kind, in_pieces(dice, data), Then.READ_ONE, slow)
    if roll < 0.75:
        data = dice.choice([good, good, body])(hand)
        if data.startswith(b"POST") and dice.random() < 0.3:
            data = chunked(dice, data)
        return Move("mutated", in_pieces(dice, mutated(dice, data)), Then.READ_ALL)
    if roll < 0.80:
        data = request("HEAD", f"{PREFIX}{hand.other}/{dice.choice(['enc_keys', 'status'])}")
        return Move("head", [data + status(hand)], Then.READ_ALL)
    if roll < 0.85:
        data = b"".join(well_framed(hand)[1] for _ in range(dice.randint(2, 8)))
        return Move("pipelined", in_pieces(dice, data + mutated(dice, status(hand))), Then.READ_ALL)
    if roll < 0.88:
        return Move("chunked", in_pieces(dice, chunked(dice, body(hand))), Then.READ_ALL)
    if roll < 0.90:
        return Move("oversized", oversized(hand), Then.READ_ALL)
    if roll < 0.92:
        return Move("bytes", [dice.randbytes(dice.choice([1, 10, 100, 5000]))], Then.READ_ALL)
    if roll < 0.96:
        data = good(hand)
        return Move("half", in_pieces(dice, data[: dice.randrange(len(data))]), dice.choice([Then.LEAVE, Then.RESET]))
    data = b"".join(status(hand) for _ in range(dice.choice([1, 5])))
    return Move("unread", [data], dice.choice([Then.LEAVE, Then.RESET]))
