"""Repositories of the fake Hub: branches of commits, each a mapping of names to files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """The content of a file, in memory or, for the large file storage, on disk."""

    size: int
    sha256: str
    data: bytes | Path
    large: bool = False

    @classmethod
    def of(cls, data: bytes) -> Blob:
        return cls(len(data), hashlib.sha256(data).hexdigest(), data)

    def read(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data.read_bytes()

    @property
    def oid(self) -> str:
        """The name of the content in git; for a large file that of the pointer to it."""
        return git_oid(self.pointer if self.large else self.read())

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return {
            "type": "file",
            "path": path,
            "size": self.size,
            "oid": self.oid,
            **({"lfs": lfs} if self.large else {}),
        }


Files = dict[str, Blob]


@dataclass
class Repository:
    private: bool = False
    disabled: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    pull_requests: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path | None = None, **state: bool) -> Repository:
        """Make a repository with a first commit: the files of a folder, or those of a new repository."""
        files = {".gitattributes": Blob.of(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
        for path in sorted(folder.iterdir()) if folder is not None else ():
            files[path.name] = Blob.of(path.read_bytes())
        repository = cls(**state)
        repository.commit("main", files)
        return repository

    @property
    def head(self) -> str:
        return self.branches["main"]

    @property
    def files(self) -> Files:
        return self.commits[self.head]

    def commit(self, branch: str, files: Files) -> str:
        state = [branch, self.branches.get(branch), {name: blob.sha256 for name, blob in files.items()}]
        oid = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        self.branches[branch], self.commits[oid] = oid, files
        return oid

    def resolve(self, revision: str) -> str | None:
        """Return the commit with that name, or at the head of the branch with that name."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def open_pull_request(self, author: str, title: str, files: Files) -> tuple[str, int]:
        number = len(self.pull_requests) + 1
        self.pull_requests.append({"num": number, "author": {"name": author}, "title": title, "status": "open"})
        return self.commit(f"refs/pr/{number}", files), number
