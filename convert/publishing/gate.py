"""The gate before publishing: only what lies there exactly as it was verified passes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convert
from convert.checkpoints.manifest import MANIFEST_NAME, REPORT_NAME, REPORT_NAMES, VERIFICATION_NAME, Manifest
from convert.errors import CheckpointError, VerificationError
from convert.files.base import file_sha256
from convert.progress import Progress

CARD_NAME = "README.md"
BESIDE = {*REPORT_NAMES, CARD_NAME}
"""Files that tell of the verification, and so may lie beside what was verified."""

IN_MEMORY = 8_000_000
"""Bytes up to which a file is read once and sent as it was then hashed."""


@dataclass(frozen=True)
class Content:
    """What a file holds: its bytes, or where they are; their number, and their SHA-256."""

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

    def git_oid(self) -> str:
        """The name git gives these bytes: the SHA-1 of a header with their number, and of them."""
        digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        if isinstance(self.data, bytes):
            digest.update(self.data)
        else:
            with open(self.data, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True)
class Verified:
    """A folder that passed: every file of it as it was hashed, and what `verification.json` says."""

    record: Manifest
    verification: dict[str, Any]
    files: dict[str, Content]


def verified(folder: Path, progress: Progress) -> Verified:
    """Everything in `folder`, hashed again.

    Raises `VerificationError` unless `verification.json` passed, number by number, for exactly
    these bytes and in this version; `CheckpointError` for what is no converted folder.
    """
    record = Manifest.read(folder)
    if record is None:
        raise CheckpointError(f"{folder} holds no {MANIFEST_NAME}; only folders that bit convert wrote are published")
    if not (folder / VERIFICATION_NAME).is_file():
        raise VerificationError(f"{folder} was never verified; bit verify {folder} does it")
    files, problems = {}, []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            progress("hashing every file again", 0, 0)
            files[path.name] = Content.of(path)
        else:
            problems.append(f"{path.name} is no file")
    report = _report(files[VERIFICATION_NAME])
    problems += [*_faults(report), *_changes(report, files)]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise VerificationError(
            f"{folder} is not as it was verified: {problems[0]}{more}; bit verify {folder} verifies it again", problems
        )
    return Verified(record, report, files)


def _report(content: Content) -> dict[str, Any]:
    data = content.data if isinstance(content.data, bytes) else content.data.read_bytes()
    try:
        report = json.loads(data)
    except (ValueError, RecursionError):
        report = None
    return report if isinstance(report, dict) else {}


def _faults(report: dict[str, Any]) -> list[str]:
    """Why this is not the report of a verification that passed here."""
    verifier, checks = f"bit-convert {convert.__version__}", report.get("checks")
    faults = []
    if report.get("passed") is not True:
        faults.append(f"{VERIFICATION_NAME} does not say that it passed")
    if report.get("problems") != []:
        faults.append(f"{VERIFICATION_NAME} tells of problems")
    if report.get("verifier") != verifier:
        faults.append(f"{VERIFICATION_NAME} was not written by {verifier}")
    if not isinstance(checks, list) or not checks:
        return [*faults, f"{VERIFICATION_NAME} holds no comparison"]
    pixels = report.get("pixels")
    checks = [*checks, *(pixels if isinstance(pixels, list) else [None])]
    failed = sum(not _passed(check) for check in checks)
    if failed:
        faults.append(f"{failed} of {len(checks)} comparisons in {VERIFICATION_NAME} are over their tolerance")
    return faults


def _passed(check: Any) -> bool:
    if not isinstance(check, dict) or check.get("passed") is not True:
        return False
    error: Any = check.get("error")
    tolerance: Any = check.get("budget")
    if not all(type(number) in (int, float) and math.isfinite(number) for number in (error, tolerance)):
        return False
    return bool(0 <= error <= tolerance)


def _changes(report: dict[str, Any], files: dict[str, Content]) -> list[str]:
    """How the files differ from those that were verified."""
    stated = report.get("files")
    if not isinstance(stated, dict) or not stated:
        return [f"{VERIFICATION_NAME} lists no files"]
    missing = [f"{name} is missing" for name in sorted(set(stated) - set(files))]
    changed = [
        f"{name} has changed since: its SHA-256 is another"
        for name, content in files.items()
        if name in stated and stated[name] != content.sha256
    ]
    page = files.get(REPORT_NAME)
    if page is None or report.get("report") != page.sha256:
        changed.append(f"{REPORT_NAME} is not the page that was written then")
    added = [f"{name} was not there then" for name in sorted(set(files) - set(stated) - BESIDE)]
    return [*missing, *changed, *added]
