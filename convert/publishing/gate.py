"""Check that a folder still holds exactly what was verified."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bit import __version__
from convert.checkpoints.manifest import CARD_NAME as CARD_NAME
from convert.checkpoints.manifest import (
    MANIFEST_NAME,
    REPORT_NAME,
    REPORT_NAMES,
    SIGNING_NAMES,
    VERIFICATION_NAME,
    Manifest,
)
from convert.errors import CheckpointError, VerificationError
from convert.files.base import file_sha256
from convert.progress import Progress
from convert.verification.results import SCHEMA

UNVERIFIED = {*REPORT_NAMES, *SIGNING_NAMES, CARD_NAME}
"""Files that may be in the folder although no verification covers them."""

IN_MEMORY = 8_000_000
"""Largest size in bytes of a file that is read only once, so that the hashed bytes are the bytes sent."""


@dataclass(frozen=True)
class Content:
    """The bytes of a file or a path to them, with size and SHA-256."""

    data: Path | bytes
    size: int
    sha256: str

    @classmethod
    def of(cls, data: Path | bytes) -> Content:
        if isinstance(data, Path) and data.stat().st_size <= IN_MEMORY:
            data = data.read_bytes()
        if isinstance(data, bytes):
            return cls(data, len(data), hashlib.sha256(data).hexdigest())
        return cls(data, data.stat().st_size, file_sha256(data))

    def read(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data.read_bytes()

    def git_oid(self) -> str:
        """Return git's name for these bytes: the SHA-1 of a header with the size and of the bytes."""
        header = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        with io.BytesIO(self.data) if isinstance(self.data, bytes) else open(self.data, "rb") as file:
            return hashlib.file_digest(file, lambda: header).hexdigest()


class Comparison(msgspec.Struct, frozen=True):
    """A row of `checks` or `pixels`; a number that was not finite is None."""

    error: float | None
    tolerance: float | None
    passed: bool

    @property
    def holds(self) -> bool:
        """Return whether the row claims to have passed and the two numbers agree with that."""
        numbers = self.error is not None and self.tolerance is not None and 0 <= self.error <= self.tolerance
        return self.passed and numbers


class Report(msgspec.Struct, frozen=True):
    """The fields of `verification.json` that decide whether a folder may be published."""

    verifier: str
    passed: bool
    problems: tuple[str, ...]
    files: dict[str, str]
    checks: tuple[Comparison, ...]
    pixels: tuple[Comparison, ...]
    report: str | None = None
    """SHA-256 of `verification.html`."""


@dataclass(frozen=True)
class VerifiedFolder:
    """A folder that passed, with the manifest, the content of `verification.json`, and every file as it was hashed."""

    manifest: Manifest
    verification: dict[str, Any]
    files: dict[str, Content]


def check_folder(folder: Path, progress: Progress) -> VerifiedFolder:
    """Hash every file in `folder` and compare it with the verification.

    Raises `VerificationError` unless `verification.json` reports a pass, number by number, by this
    version and for exactly these bytes; `CheckpointError` if the folder is not a conversion.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}; only folders that bit convert wrote can be published")
    if not (folder / VERIFICATION_NAME).is_file():
        raise VerificationError(f"{folder} is not verified; run bit verify {folder}")
    files, problems = {}, []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            progress("hashing every file again", 0, 0)
            files[path.name] = Content.of(path)
        else:
            problems.append(f"{path.name} is not a file")
    verification, report = _decode(files[VERIFICATION_NAME].read(), folder)
    problems += [*_faults(report), *_changes(report, files)]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise VerificationError(
            f"{folder} cannot be published: {problems[0]}{more}; run bit verify {folder} again", problems
        )
    return VerifiedFolder(manifest, verification, files)


def _decode(data: bytes, folder: Path) -> tuple[dict[str, Any], Report]:
    try:
        values = msgspec.json.decode(data, type=dict[str, Any])
        schema = values.get("schema", 1)
        if schema == SCHEMA:
            return values, msgspec.convert(values, Report)
        problem = f"has schema {schema}, but this version reads schema {SCHEMA}"
    except (msgspec.MsgspecError, RecursionError) as error:
        problem = f"is damaged ({error})"
    raise VerificationError(
        f"{folder} cannot be published: {VERIFICATION_NAME} {problem}; run bit verify {folder} again",
        [f"{VERIFICATION_NAME} {problem}"],
    )


def _faults(report: Report) -> list[str]:
    """Return the reasons why this does not report a verification that passed in this version."""
    verifier, rows = f"bit-convert {__version__}", [*report.checks, *report.pixels]
    failed = sum(not row.holds for row in rows)
    faults = {
        "does not report a pass": not report.passed,
        f"reports a problem ({next(iter(report.problems), None)})": bool(report.problems),
        f"comes from {report.verifier}, not from {verifier}": report.verifier != verifier,
        "has no comparisons": not report.checks,
        f"has {failed} of {len(rows)} comparisons over the tolerance": failed > 0,
        "lists no files": not report.files,
    }
    return [f"{VERIFICATION_NAME} {fault}" for fault, applies in faults.items() if applies]


def _changes(report: Report, files: dict[str, Content]) -> list[str]:
    """Return the differences between the files and those that were verified."""
    missing = [f"{name} is missing" for name in sorted(set(report.files) - set(files))]
    changed = [
        f"{name} was changed after the verification (different SHA-256)"
        for name, content in files.items()
        if name in report.files and report.files[name] != content.sha256
    ]
    page = files.get(REPORT_NAME)
    if page is None or report.report != page.sha256:
        changed.append(f"{REPORT_NAME} is not the page that the verification wrote")
    added = [f"{name} was added after the verification" for name in sorted(set(files) - set(report.files) - UNVERIFIED)]
    return [*missing, *changed, *added]
