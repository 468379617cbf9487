"""What a server says of a file that it serves: which one it is, how long it is, and what it must hash to."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from convert.files.atomic import write_json


@dataclass(frozen=True)
class RemoteFile:
    """One version of a file on a server. It lies as JSON beside what was fetched of it; see `record_path`."""

    url: str
    size: int | None = None
    """In bytes."""
    generation: str | None = None
    """The version's number at Google Cloud Storage, which `?generation=` asks for again."""
    validator: str | None = None
    """A strong ETag or, where there is none, the time of the last change; for `If-Range` (RFC 9110, 13.1.5)."""
    crc32c: str | None = None
    """In Base64, as the header `x-goog-hash` has it; so is `md5`, which composite objects do not have."""
    md5: str | None = None
    sha256: str | None = None
    """In hexadecimal digits. No server states it: it is that of the whole file, once it is here and checked."""
    modified_ns: int | None = None
    """The whole file's time of modification here, in nanoseconds."""

    @classmethod
    def stated(cls, url: str, headers: Mapping[str, str]) -> RemoteFile:
        """By the headers of an answer that brings the whole file."""
        length, etag = headers.get("content-length", ""), headers.get("etag", "")
        items = (item.strip().partition("=") for item in headers.get("x-goog-hash", "").split(","))
        hashes = {name: value for name, _, value in items}
        return cls(
            url,
            int(length) if length.isdecimal() else None,
            headers.get("x-goog-generation"),
            etag if etag.startswith('"') else headers.get("last-modified"),
            hashes.get("crc32c"),
            hashes.get("md5"),
        )

    @classmethod
    def recorded(cls, path: Path) -> RemoteFile | None:
        """What the file at `path`, or its part, was fetched from; None if that is not known."""
        try:
            values = json.loads(record_path(path).read_text("utf-8"))
            remote = cls(**values)
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return remote if all(_fits(name, value) for name, value in values.items()) else None

    def write_record(self, path: Path) -> None:
        write_json(record_path(path), asdict(self))

    @property
    def resumable(self) -> bool:
        """Whether the rest of this version, and of no other, can be asked for."""
        return self.generation is not None or self.validator is not None

    def rest(self, start: int) -> tuple[str, dict[str, str]]:
        """The address and the headers that ask for this version from byte `start` on."""
        wanted = {"Range": f"bytes={start}-"}
        if self.generation is None:
            return self.url, wanted | {"If-Range": self.validator or ""}
        return f"{self.url}{'&' if '?' in self.url else '?'}generation={quote(self.generation)}", wanted

    def is_continued(self, start: int, headers: Mapping[str, str]) -> bool:
        """Whether an answer 206 brings this version from byte `start` on.

        A server that honours `If-Range` need not repeat the time of the last change.
        """
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", ""))
        if found is None or int(found[1]) != start:
            return False
        if self.size is not None and found[2] not in ("*", str(self.size)):
            return False
        if self.generation is not None:
            return headers.get("x-goog-generation") == self.generation
        repeated = [headers[name] for name in ("etag", "last-modified") if name in headers]
        return not repeated or self.validator in repeated


def record_path(path: Path) -> Path:
    """Where it is written what the file at `path` was fetched from."""
    return path.with_name(f"{path.name}.download.json")


def _fits(name: str, value: object) -> bool:
    """Whether a field can have this value, which a damaged or foreign file may not."""
    if name in ("size", "modified_ns"):
        return value is None or type(value) is int
    return (value is None and name != "url") or (isinstance(value, str) and value.isascii() and value.isprintable())
