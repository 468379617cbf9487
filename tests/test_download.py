"""Fetching over real HTTP, from a server on loopback that can misbehave."""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import quiet

from convert.download import download
from convert.errors import CheckpointError
from convert.locate import locate
from convert.zoo import published


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.arange(1_000_000))
    return stream.getvalue()


CONTENT = archive()
MD5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()


class Bucket(BaseHTTPRequestHandler):
    """Answers as Google's storage service does; the path says what goes wrong."""

    def do_GET(self) -> None:
        if "absent" in self.path:
            self.send_error(404)
            return
        if "portal" in self.path:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Please log in to the network.</html>")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.send_header("x-goog-hash", "crc32c=AAAAAA==")
        if "composite" not in self.path:
            self.send_header("x-goog-hash", f"md5={MD5}")
        self.end_headers()
        body = CONTENT[:-1] + b"x" if "corrupt" in self.path else CONTENT
        self.wfile.write(body[: len(body) // 2] if "cut" in self.path else body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["whole.npz", "composite.npz"])
def test_a_file_arrives_whole(address: str, tmp_path: Path, name: str) -> None:
    seen: list[tuple[str, int, int]] = []
    download(f"{address}/{name}", tmp_path / "deep" / name, lambda *step: seen.append(step))
    assert (tmp_path / "deep" / name).read_bytes() == CONTENT
    assert seen[-1] == ("downloading", len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.npz", "answers 404"),
        ("corrupt.npz", "other bytes than its MD5"),
        ("cut.npz", "cannot be reached"),
        ("portal.npz", "something else than an npz file"),
    ],
)
def test_what_goes_wrong_names_the_address_and_leaves_nothing(
    address: str, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        download(f"{address}/{name}", tmp_path / name, quiet)
    assert f"{address}/{name}" in str(raised.value)
    assert f"put it at {tmp_path / name}" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_published_name_is_fetched_once(address: str, tmp_path: Path) -> None:
    for _ in range(2):
        path = locate("BiT-M-R50x1-run0-caltech101", tmp_path, quiet, address)
        assert path.read_bytes() == CONTENT
        address = "http://127.0.0.1:9/nowhere"
    assert path == tmp_path / "BiT-M-R50x1-run0-caltech101.npz"


def test_the_published_checkpoints_are_known_by_name() -> None:
    names = published()
    assert len(names) == 12 + 6 + 1 + 285 + 4
    assert names["BiT-M-R152x4"] == "BiT-M-R152x4.npz"
    assert names["BiT-M-R101x3-run2-dsprites-xpos"] == "vtab/BiT-M-R101x3-run2-dsprites-xpos.npz"
    assert names["R152x2_T_384"] == "distill/R152x2_T_384.npz"
