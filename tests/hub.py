"""A Hub on the loopback that serves folders as repositories, as far as downloading needs it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append(path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision|/tree)?(?:/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        folder = self.server.repositories.get(found[1]) if found else None
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        elif file is not None:
            target = folder / file[3]
            if not target.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, with_body)
                return
            content = target.read_bytes()
            etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, etag, with_body)
        elif api is not None and api[2] == "/tree":
            entries = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in sorted(folder.iterdir())
            ]
            self._send(200, json.dumps(entries).encode(), {}, with_body)
        else:
            siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            about = {"id": found[1] if found else "", "sha": COMMIT, "siblings": siblings, "private": False}
            self._send(200, json.dumps(about).encode(), {}, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.requests: list[str] = []


@contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[dict[str, str]]:
    """Serve folders under names `owner/name`; the environment that a process needs to use it."""
    server = _Server(repositories)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1"}
    finally:
        server.shutdown()
        server.server_close()
