"""A storage service on loopback that serves one object as Google's does, with faults on request."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import numpy as np

PIECE = 8 << 10
"""Bytes sent at once."""
GOOGLE = ("length", "generation", "crc32c", "md5", "etag", "last-modified")
"""Headers that the service sends with an object; other servers send fewer."""


def archive(seed: int) -> bytes:
    """Return an npz file of 200 kB, always of the same length."""
    stream = io.BytesIO()
    np.savez(stream, a=np.random.default_rng(seed).random(25_000))
    return stream.getvalue()


@dataclass(frozen=True)
class Fault:
    """A fault of one response. Offsets count the bytes of the object."""

    status: int | None = None
    """Status of the response, which has no body."""
    cut: int | None = None
    """The connection ends before this byte."""
    stall: int | None = None
    """The connection stays open, but nothing comes from this byte on."""
    corrupt: int | None = None
    """This byte is changed."""
    extra: int | None = None
    """The response comes in chunks, with this number of bytes after those that are stated."""
    ignores_range: bool = False
    changes: bool = False
    """After the response the object is replaced by the next generation."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers to add or replace."""


@dataclass(frozen=True)
class Request:
    path: str
    range: str | None
    headers: dict[str, str]


class Bucket(ThreadingHTTPServer):
    """Each request takes the next of `faults`, if there is one, and is added to `requests`."""

    daemon_threads = True

    def __init__(self, states: Sequence[str] = GOOGLE, content: bytes | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.states = states
        self.generation = 1
        self.content = archive(1) if content is None else content
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.sent = 0
        """Bytes sent in chunks."""
        self.pause = 0.0
        """Seconds between two pieces of a response."""
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        scheme = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
        return f"{scheme}://127.0.0.1:{self.server_port}"

    @property
    def ranges(self) -> list[str | None]:
        return [request.range for request in self.requests]

    def change(self) -> None:
        self.generation += 1
        self.content = archive(self.generation)


@contextlib.contextmanager
def serving(bucket: Bucket, certificate: Path | None = None) -> Iterator[Bucket]:
    """Serve over HTTP, or over TLS with a certificate of `support.tls`."""
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        bucket.socket = context.wrap_socket(bucket.socket, server_side=True)
    thread = threading.Thread(target=bucket.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield bucket
    finally:
        bucket.closing.set()
        bucket.shutdown()
        thread.join()
        bucket.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_GET(self) -> None:
        self.server.requests.append(Request(self.path, self.headers["Range"], dict(self.headers)))
        fault = self.server.faults.pop(0) if self.server.faults else Fault()
        with contextlib.suppress(ConnectionError):
            self._answer(fault)
        if fault.changes:
            self.server.change()

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, fault: Fault) -> None:
        content, stated = self.server.content, self._stated()
        wanted = parse_qs(urlsplit(self.path).query).get("generation")
        if fault.status is not None:
            self._head(fault.status, {"Content-Length": "0", **fault.headers})
            return
        if wanted not in (None, [str(self.server.generation)]):
            self._head(404, {"Content-Length": "0"})
            return
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        ranged = found is not None and not fault.ignores_range
        ranged = ranged and condition in (None, stated.get("ETag"), stated.get("Last-Modified"))
        start = int(found[1]) if found is not None and ranged else 0
        if start and start >= len(content):
            self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"})
            return
        headers = {**stated, "Content-Length": str(len(content) - start)}
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if "length" not in self.server.states:
            headers["Connection"] = "close"
            del headers["Content-Length"]
        if fault.extra is not None:
            self._head(206 if ranged else 200, {**headers, "Transfer-Encoding": "chunked"})
            self._chunks(content[start:], fault.extra)
            return
        self._head(206 if ranged else 200, {**headers, **fault.headers})
        self._body(bytearray(content), start, fault)

    def _stated(self) -> dict[str, str]:
        content, generation = self.server.content, self.server.generation
        digest = hashlib.md5(content)
        crc32c = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        stated = {
            "generation": ("x-goog-generation", str(generation)),
            "crc32c": ("x-goog-hash", f"crc32c={crc32c}"),
            "md5": (
                "X-Goog-Hash",  # a second line of the same header
                f"md5={base64.b64encode(digest.digest()).decode()}",
            ),
            "etag": ("ETag", f'"{digest.hexdigest()}"'),
            "weak etag": ("ETag", f'W/"{digest.hexdigest()}"'),
            "last-modified": ("Last-Modified", formatdate(1.6e9 + generation, usegmt=True)),
        }
        return dict(stated[name] for name in self.server.states if name in stated)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _chunks(self, content: bytes, extra: int) -> None:
        for piece in (content, *[bytes(PIECE)] * (extra // PIECE), bytes(extra % PIECE)):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.server.sent += len(piece)

    def _body(self, content: bytearray, start: int, fault: Fault) -> None:
        if fault.corrupt is not None:
            content[fault.corrupt] ^= 1
        stop = next((at for at in (fault.cut, fault.stall) if at is not None), len(content))
        for position in range(start, stop, PIECE):
            self.wfile.write(content[position : min(position + PIECE, stop)])
            time.sleep(self.server.pause)
        if fault.stall is not None:
            self.server.closing.wait(10)
        if stop < len(content) or "length" not in self.server.states:
            self.close_connection = True
