"""One version of a file on a server, as the server describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec

from convert.files.atomic import write_json
from convert.sources.redaction import without_credentials

Text = Annotated[str, msgspec.Meta(pattern=r"^[ -~]*\Z")]
"""Printable ASCII, which is safe in an HTTP header."""


class RemoteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of a file on a server, kept as JSON beside the download; see `info_path`."""

    url: Text
    size: int | None = None
    """In bytes."""
    generation: Text | None = None
    """Version number in Google Cloud Storage; `?generation=` asks for that version again."""
    validator: Text | None = None
    """A strong ETag, else the time of the last change; for `If-Range` (RFC 9110, 13.1.5)."""
    crc32c: Text | None = None
    """In Base64, as in the header `x-goog-hash`. So is `md5`, which composite objects do not have."""
    md5: Text | None = None
    sha256: Text | None = None
    """In hexadecimal digits. Computed here once the whole file has arrived; no server states it."""
    modified_ns: int | None = None
    """Modification time of the whole local file, in nanoseconds."""

    @classmethod
    def from_headers(cls, url: str, headers: Mapping[str, str]) -> RemoteFile:
        """Describe a file by the headers of a response that brings all of it."""
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
    def load(cls, path: Path) -> RemoteFile | None:
        """Return the remote file that `path`, or a part of it, was fetched from; None if unknown."""
        try:
            found = msgspec.json.decode(info_path(path).read_bytes(), type=cls)
            return msgspec.structs.replace(found, url=without_credentials(found.url))
        except (OSError, ValueError, RecursionError):
            return None

    def save(self, path: Path) -> None:
        write_json(info_path(path), msgspec.to_builtins(self))

    @property
    def resumable(self) -> bool:
        """True if the server can be asked for the rest of this version and of no other."""
        return self.generation is not None or self.validator is not None

    def rest(self, start: int) -> tuple[str, dict[str, str]]:
        """Return the URL and the headers that ask for this version from byte `start` on."""
        wanted = {"Range": f"bytes={start}-"}
        if self.generation is None:
            return self.url, wanted | {"If-Range": self.validator or ""}
        return f"{self.url}{'&' if '?' in self.url else '?'}generation={quote(self.generation)}", wanted

    def is_continued(self, start: int, headers: Mapping[str, str]) -> bool:
        """Return True if a response 206 brings this version from byte `start` on."""
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("content-range", ""))
        if found is None or int(found[1]) != start:
            return False
        if self.size is not None and found[2] not in ("*", str(self.size)):
            return False
        if self.generation is not None:
            return headers.get("x-goog-generation") == self.generation
        # A server that honours `If-Range` need not repeat the time of the last change.
        repeated = [headers[name] for name in ("etag", "last-modified") if name in headers]
        return not repeated or self.validator in repeated


def info_path(path: Path) -> Path:
    """Return the path of the JSON file that says where the file at `path` was fetched from."""
    return path.with_name(f"{path.name}.download.json")
