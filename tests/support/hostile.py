"""Answers of a hostile or broken server, each a function that writes to the connection of a handler."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Answer = Callable[[Any], None]
"""Answers the request of a handler, whose `server` has `outside`, `closing` and `count`."""

PAUSE = 0.05
"""Seconds between two bytes of a server that sends drop by drop."""
ENDLESS = 4_000
"""Pieces of 256 kB of an answer without an end: 1 GB."""
ABSOLUTE, UPWARDS = "/{outside}", "../../../../../../{outside}"
"""Names of a file outside of any cache; see `filled`."""
SHORT = 10_000
"""Bytes of the longest piece that is filled in."""


def filled(text: bytes, handler: Any) -> bytes:
    """Return bytes with the token of the request, and with the path of a file that no client may write."""
    token = (handler.headers["Authorization"] or "nothing").removeprefix("Bearer ")
    return text.replace(b"{token}", token.encode()).replace(
        b"{outside}", str(handler.server.outside).lstrip("/").encode()
    )


def raw(*pieces: bytes | Iterable[bytes], pause: float = 0.0) -> Answer:
    """Send bytes as they are, piece by piece, until the client is gone."""

    def send(handler: Any) -> None:
        with contextlib.suppress(OSError):
            for piece in _flat(pieces):
                handler.wfile.write(filled(piece, handler) if len(piece) < SHORT else piece)
                handler.server.count += len(piece)
                if pause and handler.server.closing.wait(pause):
                    return

    return send


def _flat(pieces: Iterable[bytes | Iterable[bytes]]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            yield from piece


def answer(body: Any, status: str = "200 OK", **headers: str) -> Answer:
    """Send one whole answer; `body` is bytes, or a value to be sent as JSON.

    It says that the connection ends then: a client that sends the next request on it could meet a reset.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def send(handler: Any) -> None:
        length = len(filled(content, handler) if len(content) < SHORT else content)
        raw(_head(status, {**JSON, "Content-Length": str(length), "Connection": "close", **headers}), content)(handler)

    return send


def _head(status: str, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def _named(*etags: str) -> Answer:
    """Send no more than a commit, an ETag, and that of what is linked, as the Hub does for a file."""
    names = dict(zip(("ETag", "X-Linked-Etag"), (f'"{etag}"' for etag in etags), strict=False))
    return raw(_head("200 OK", {**names, "X-Repo-Commit": "0" * 40}))


def _silent(handler: Any) -> None:
    handler.server.closing.wait(30)


JSON, CHUNKED = {"Content-Type": "application/json"}, {"Transfer-Encoding": "chunked"}
PIECE = b" " * (1 << 18)
DROPS = [b" "] * 10_000
OK = b"HTTP/1.1 200 OK\r\n"
EVIL = {"sha": ABSOLUTE, "id": "{token}/x", "name": "{token}", "commitOid": UPWARDS, "url": "https://{token}@x/a/b"}
FILE = {"type": "file", "oid": UPWARDS, "size": 3, "lfs": {"oid": ABSOLUTE, "size": 3, "pointerSize": 3}}

BAD: dict[str, Answer] = {
    "a web page": answer(b"<html><body>Please log in: {token}</body></html>", Content_Type="text/html"),
    "an empty list": answer([]),
    "null": answer(None),
    "a number": answer(1e300),
    "a text": answer("{token}"),
    "an object": answer({}),
    "a list of lists": answer([[], [None], {"path": 5}]),
    "other types": answer({"sha": 5, "name": [], "id": {}, "files": 3, "objects": {}, "orgs": [7], "discussions": 1}),
    "ids that are paths": answer(EVIL),
    "files that are paths": answer([{**FILE, "path": name} for name in (f"{ABSOLUTE}.json", f"{UPWARDS}.bin")]),
    "files with the token": answer([{**FILE, "path": "{token}.safetensors"}, {**FILE, "path": "\x1b]0;a\x07.onnx"}]),
    "negative sizes": answer([{**FILE, "path": "model.safetensors", "size": -5}]),
    "nested lists": answer(b"[" * 100_000),
    "nested objects": answer(b'{"sha":' * 100_000),
    "half of the answer": raw(OK, b'Content-Length: 100\r\n\r\n{"sha": "00'),
    "bytes that are not UTF-8": answer(b'{"sha": "\xff\xfe"}'),
    "a BOM in UTF-16": answer('{"sha": "0"}'.encode("utf-16")),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "nothing": raw(b""),
    "an absolute path as ETag": _named(ABSOLUTE, ABSOLUTE),
    "a path upwards as ETag": _named(UPWARDS),
    "two dots as ETag": _named(".."),
    "a path as weak ETag": raw(_head("200 OK", {"ETag": f"W/{ABSOLUTE}", "X-Repo-Commit": "0" * 40})),
    "an absolute path as commit": answer(b"abc", ETag='"0123"', X_Repo_Commit=ABSOLUTE),
    "an absolute path as missing commit": answer(
        {}, "404 Not Found", X_Error_Code="EntryNotFound", X_Repo_Commit=f"{ABSOLUTE}"
    ),
    "the token in headers": answer(
        {"error": "not with {token}"}, "400 Bad", X_Error_Message="not with {token}", X_Request_Id="{token}"
    ),
    "the token in the status": raw(b"HTTP/1.1 418 {token}\r\nContent-Length: 0\r\n\r\n"),
    "the token in a warning": answer({"warnings": [{"message": "not with {token}"}]}, X_HF_Warning="not with {token}"),
    "errors that are numbers": answer({"errors": 5, "error": {"a": []}}, "400 Bad Request"),
    "a list as error": answer([], "403 Forbidden"),
    "a redirect to the token": answer(b"", "302 Found", Location="http://{token}@127.0.0.1:9/?token={token}"),
    "a redirect to a file": answer(b"", "302 Found", Location="file:///etc/passwd"),
    "a redirect to no address": answer(b"", "302 Found", Location="http://[::{token}"),
    "a redirect to itself": answer(b"", "307 Temporary Redirect", Location="?again"),
    "an endless wait": answer(b"", "429 Too Many", Retry_After="999999999", RateLimit='"api";r=0;t=999999999'),
    "compressed zeros": answer(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
    "an invalid length": raw(OK, b"Content-Length: 99999999999999999999999\r\n\r\n", [PIECE] * ENDLESS),
    "an endless answer": raw(_head("200 OK", JSON | CHUNKED), b"1\r\n[\r\n", [_chunk(PIECE)] * ENDLESS),
    "endless headers": raw(OK, [b"X-%d: %s\r\n" % (number, PIECE[:8000]) for number in range(1000)]),
    "endless interim answers": raw([b"HTTP/1.1 100 Continue\r\nX: %s\r\n\r\n" % PIECE[:SHORT]] * 25 * ENDLESS),
    "an endless list": answer([{**FILE, "path": "a.bin"}], Link='<?cursor=1>; rel="next"'),
}
"""Answers to be given once or always, by what is wrong with them."""

SLOW: dict[str, Answer] = {
    "silence": _silent,
    "a slow body": raw(_head("200 OK", JSON | {"Content-Length": "10000"}), DROPS, pause=PAUSE),
    "slow headers": raw(OK, b"X-Slow: ", DROPS, pause=PAUSE),
    "a slow chunk": raw(_head("200 OK", JSON | CHUNKED), b"1;a=", DROPS, pause=PAUSE),
}
"""Answers that end only if the client ends them."""
