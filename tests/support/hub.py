"""A Hub on the loopback for downloads and pushes by huggingface_hub, with faults that a test can add.

The requests and answers are those of huggingface_hub 2 (`hf_api.py`, `_commit_api.py`, `lfs.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.hostile import Answer
from support.hub_repositories import Blob, Files, Repository
from support.hub_xet import restore

PART = 1 << 22
"""Bytes of a part; larger files are sent in several parts."""


@dataclass
class Fault:
    """A failure of the requests that match `request`: an HTTP status, the end of the connection, or another answer.

    `drop`: before anything is done; `cut`: after half of the body was read; `lose`: after everything
    was done, but before the answer; `none`: no failure. `first` is called before.
    """

    request: str
    does: int | str | Answer
    times: int = 1
    first: Callable[[], None] | None = None
    message: str = "out of order"
    after: int = 0
    """Number of matching requests that succeed before."""


class RefusalError(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status, self.message, self.code = status, message, code


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository], storage: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.storage = repositories, storage
        self.tokens: dict[str, dict[str, Any]] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.outside, self.count = storage / "outside", 0

    def handle_error(self, request: object, address: object) -> None:
        """Ignore clients that close the connection."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for a process that uses this Hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}

    def sent(self) -> list[str]:
        """Return the requests that change something, successful or not."""
        return [line for line in self.requests if not re.match("GET|HEAD", line)]


@contextmanager
def hub(folders: dict[str, Path] | None = None) -> Iterator[HubServer]:
    """Serve folders as repositories under names `owner/name`, and accept new ones."""
    with tempfile.TemporaryDirectory() as storage:
        server = HubServer({name: Repository.of(folder) for name, folder in (folders or {}).items()}, Path(storage))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        line = f"{self.command} {unquote(url.path)}"
        self.query = parse_qs(url.query)
        with self.server.lock:
            self.server.requests.append(line)
            fault = self._fault(line)
        if fault is not None and fault.first is not None:
            fault.first()
        does = fault.does if fault is not None else None
        self._left = int(self.headers.get("Content-Length", 0))
        if does == "cut":
            self.rfile.read(self._left // 2)
        if callable(does):
            self._read(self._left)
            does(self)
        if does in ("drop", "cut") or callable(does):
            self._hang_up()
            return
        try:
            if fault is not None and isinstance(does, int):
                raise RefusalError(does, fault.message)
            status, headers, body = self._route(line)
        except RefusalError as refusal:
            status, body = refusal.status, json.dumps({"errors": [{"message": refusal.message}]}).encode()
            headers = {"X-Error-Message": refusal.message, "Content-Type": "application/json"}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        while self._left:
            self._read(min(self._left, 1 << 20))
        if does == "lose":
            self._hang_up()
            return
        self._send(status, headers, body)

    def _fault(self, line: str) -> Fault | None:
        for fault in self.server.faults:
            if fault.times and re.fullmatch(fault.request, line):
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, headers: dict[str, str], body: bytes | Path) -> None:
        self.send_response(status)
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        for name, value in {"Content-Length": str(size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
            return
        with open(body, "rb") as file:
            while block := file.read(1 << 20):
                self.wfile.write(block)

    def _read(self, count: int) -> bytes:
        block = self.rfile.read(count)
        self._left -= len(block)
        if len(block) < count:
            self._left = 0
            raise ConnectionError("the client went away")
        return block

    def _json(self) -> Any:
        return json.loads(self._read(self._left))

    def _route(self, line: str) -> tuple[int, dict[str, str], bytes | Path]:
        for pattern, answer in _ROUTES.items():
            if match := re.fullmatch(pattern, line):
                found = answer(self, *match.groups())
                return found if isinstance(found, tuple) else (200, {}, json.dumps(found).encode())
        raise RefusalError(404, f"nothing answers {line}")

    def _account(self) -> dict[str, Any] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.server.tokens:
            raise RefusalError(401, f"Invalid credentials in Authorization header: {token}")
        return self.server.tokens.get(token)

    def _repository(self, name: str) -> Repository:
        repository, account = self.server.repositories.get(name), self._account()
        if repository is None or (repository.private and account is None):
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        if repository.disabled:
            raise RefusalError(403, "Access to this resource is disabled.")
        return repository

    def _commit_of(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self._repository(name)
        commit = repository.resolve(revision)
        if commit is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit

    def _may_write(self, name: str) -> dict[str, Any]:
        account = self._account()
        if account is None:
            raise RefusalError(401, "Please log in")
        owners = [account["name"], *(each["name"] for each in account["orgs"])]
        allowed = name.split("/")[0] in owners or "create_pr" in self.query
        if account["auth"]["accessToken"]["role"] == "read" or not allowed:
            raise RefusalError(403, "You don't have the rights to write here")
        return account

    def whoami(self) -> Any:
        account = self._account()
        if account is None:
            raise RefusalError(401, "Please log in")
        return account

    def create(self) -> Any:
        asked = self._json()
        account = self._may_write(f"{asked['organization']}/{asked['name']}")
        name = f"{asked['organization'] or account['name']}/{asked['name']}"
        if name in self.server.repositories:
            return 409, {}, json.dumps({"url": f"{self.server.endpoint}/{name}", "error": "it exists"}).encode()
        self.server.repositories[name] = Repository.of(private=asked.get("visibility") == "private")
        return {"url": f"{self.server.endpoint}/{name}", "name": name, "id": name}

    def validate(self) -> Any:
        text = self._json()["content"]
        if not re.match(r"---\n(.+\n)+---\n", text):
            error = json.dumps({"errors": [{"message": "no metadata"}], "warnings": []}).encode()
            return 400, {"Content-Type": "application/json"}, error
        return {"errors": [], "warnings": []}

    def about(self, name: str, revision: str | None = None) -> Any:
        repository, commit = self._commit_of(name, revision or "main")
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        state = {"private": repository.private, "disabled": repository.disabled}
        return {"id": name, "sha": commit, "siblings": siblings, **state}

    def tree(self, name: str, revision: str) -> Any:
        repository, commit = self._commit_of(name, revision)
        if repository.gated:
            raise RefusalError(403, f"Access to model {name} is restricted", "GatedRepo")
        return [blob.entry(path) for path, blob in sorted(repository.commits[commit].items())]

    def resolve(self, name: str, revision: str, path: str) -> Any:
        repository, commit = self._commit_of(name, revision)
        blob = repository.commits[commit].get(path)
        if blob is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        etag = blob.sha256 if blob.large else blob.oid
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        return 200, headers, blob.data

    def preupload(self, name: str, revision: str) -> Any:
        self._may_write(name)
        repository, commit = self._commit_of(name, revision)
        ignore = repository.commits[commit].get(".gitignore")
        ignored = ignore.read().decode().split() if ignore else []
        answers = []
        for file in self._json()["files"]:
            large = file["path"].endswith((".safetensors", ".h5", ".npz", ".onnx", ".data")) or file["size"] > 10 << 20
            mode = {"uploadMode": "lfs" if large else "regular", "shouldIgnore": file["path"] in ignored}
            answers.append({"path": file["path"], **mode})
        return {"files": answers}

    def batch(self, name: str) -> Any:
        self._account()
        objects = []
        for each in self._json()["objects"]:
            oid, size = each["oid"], each["size"]
            if (self.server.storage / oid).exists():
                objects.append({"oid": oid, "size": size})
                continue
            base = self.server.endpoint
            parts = {f"{part + 1:05}": f"{base}/part/{oid}/{part}" for part in range(-(-size // PART))}
            upload = {"href": f"{base}/complete/{oid}", "header": {"chunk_size": str(PART), **parts}}
            if len(parts) == 1:
                upload = {"href": f"{base}/part/{oid}/0"}
            verify = {"href": f"{base}/verify/{oid}/{len(parts)}"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        return {"transfer": "basic", "objects": objects}

    def part(self, oid: str, number: str) -> Any:
        if self.headers.get("Authorization"):
            raise RefusalError(400, "an address that is signed takes no token")
        digest = hashlib.md5(usedforsecurity=False)
        with open(self.server.storage / f"{oid}.{number}", "wb") as file:
            while self._left:
                block = self._read(min(self._left, 1 << 20))
                file.write(block)
                digest.update(block)
        return 200, {"ETag": f'"{digest.hexdigest()}"'}, b""

    def complete(self, oid: str) -> Any:
        parts = self._json()["parts"]
        if not all(each["etag"] for each in parts):
            raise RefusalError(400, "a part has no etag")
        return {"oid": oid, "parts": len(parts)}

    def verify(self, oid: str, parts: str) -> Any:
        """Join the parts if size and hash are those announced."""
        if (self.server.storage / oid).exists():
            return {}
        size = self._json()["size"]
        digest, whole = hashlib.sha256(), self.server.storage / f"{oid}.0"
        with open(whole, "ab") as joined:
            for number in range(int(parts)):
                part = self.server.storage / f"{oid}.{number}"
                with open(part, "rb") as file:
                    while block := file.read(1 << 20):
                        digest.update(block)
                        if number:
                            joined.write(block)
                if number:
                    part.unlink()
        if digest.hexdigest() != oid or whole.stat().st_size != size:
            raise RefusalError(422, "these are other bytes than were announced")
        whole.rename(self.server.storage / oid)
        return {}

    def commit(self, name: str, revision: str) -> Any:
        account = self._may_write(name)
        repository, head = self._commit_of(name, revision)
        header, *operations = [json.loads(line) for line in self._read(self._left).splitlines()]
        with self.server.lock:
            parent = header["value"].get("parentCommit")
            if "create_pr" not in self.query and parent not in (None, repository.resolve(revision)):
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repository.commits[parent or head])
            for operation in operations:
                self._apply(operation["key"], operation["value"], files)
            if "create_pr" in self.query:
                oid, number = repository.open_pull_request(account["name"], header["value"]["summary"], files)
                pull = {"pullRequestUrl": f"{self.server.endpoint}/{name}/discussions/{number}"}
            else:
                oid, pull = repository.commit(revision, files), {}
        return {"commitOid": oid, "commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", **pull}

    def _apply(self, key: str, value: dict[str, Any], files: Files) -> None:
        path = value["path"]
        if key == "deletedFile":
            del files[path]
        elif key == "file":
            files[path] = Blob.of(base64.b64decode(value["content"]))
        else:
            assert key == "lfsFile"
            stored = self.server.storage / value["oid"]
            if not stored.exists() and not restore(self.server.storage, value["oid"], value["size"], stored):
                raise RefusalError(400, f"{path} was not uploaded")
            files[path] = Blob(stored.stat().st_size, value["oid"], stored, large=True)

    def discussions(self, name: str) -> Any:
        author = self.query.get("author", [None])[0]
        about = {"isPullRequest": True, "createdAt": "2025-01-01T00:00:00.000Z"}
        found = [
            {**each, **about, "repo": {"name": name, "type": "model"}}
            for each in self._repository(name).pull_requests
            if author in (None, each["author"]["name"])
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def xet_token(self, name: str, revision: str) -> Any:
        return {"casUrl": f"local://{self.server.storage}", "accessToken": "short-lived", "exp": 1 << 33}


_NAME, _REVISION = r"([^/]+/[^/]+)", r"(refs/pr/\d+|[^/]+)"
_ROUTES: dict[str, Callable[..., Any]] = {
    "GET /api/whoami-v2": _Handler.whoami,
    "POST /api/repos/create": _Handler.create,
    "POST /api/validate-yaml": _Handler.validate,
    f"GET /api/models/{_NAME}": _Handler.about,
    f"GET /api/models/{_NAME}/discussions": _Handler.discussions,
    f"GET /api/models/{_NAME}/revision/{_REVISION}": _Handler.about,
    f"GET /api/models/{_NAME}/tree/{_REVISION}": _Handler.tree,
    f"GET /api/models/{_NAME}/xet-(?:write|read)-token/{_REVISION}": _Handler.xet_token,
    f"POST /api/models/{_NAME}/preupload/{_REVISION}": _Handler.preupload,
    f"POST /api/models/{_NAME}/commit/{_REVISION}": _Handler.commit,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /part/(\w+)/(\d+)": _Handler.part,
    r"POST /complete/(\w+)": _Handler.complete,
    r"POST /verify/(\w+)/(\d+)": _Handler.verify,
    f"(?:GET|HEAD) /{_NAME}/resolve/{_REVISION}/(.+)": _Handler.resolve,
}
