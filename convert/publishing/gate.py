"""Check that a folder still holds exactly what was verified, and that the report of it can be true.

`verification.json` vouches for nothing by itself. The gate holds it to the bytes of every file, to the manifest, to
the network in the weights, and to tolerances that it derives again; with `reverify` the verification is repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bit import __version__
from bit.files import parse_json
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.epsilon import training_of
from convert.checkpoints.manifest import CARD_NAME as CARD_NAME
from convert.checkpoints.manifest import (
    MANIFEST_NAME,
    REPORT_NAME,
    REPORT_NAMES,
    SIGNING_NAMES,
    VERIFICATION_NAME,
    Manifest,
)
from convert.checkpoints.records import parse_record
from convert.errors import CheckpointError, IncompleteError, VerificationError
from convert.files.base import CHUNK, combined_sha256, open_regular, shown
from convert.progress import Progress
from convert.publishing.consistency import Inputs, contradictions, needs_source
from convert.references.recordings import SHIPPED, find_recordings
from convert.sources.hub_client import LARGEST_IN_COMMIT
from convert.sources.provenance import address
from convert.verification.results import INCOMPLETE, Check, PixelCheck, StoredVerification, Verification
from convert.verification.verify import Settings, compare_files, compare_manifest, verify

UNVERIFIED = {*REPORT_NAMES, *SIGNING_NAMES, CARD_NAME}
"""Files that may be in the folder although no verification covers them."""

IN_MEMORY = 8_000_000
"""Largest size in bytes of a file that is read only once, so that the hashed bytes are the bytes sent."""


Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Content:
    """The bytes of a file or a path to them, with size and SHA-256."""

    data: Path | bytes
    size: int
    sha256: str
    identity: Identity | None = None
    """Device, inode, size and times of the file when it was hashed; None for bytes in memory."""
    oid: str | None = None
    """Git's name for the bytes, see `git_oid`; None if it was not computed yet."""

    @classmethod
    def of(cls, data: Path | bytes) -> Content:
        if isinstance(data, bytes):
            return cls(data, len(data), hashlib.sha256(data).hexdigest())
        with open_regular(data) as file:
            identity = _identity(os.fstat(file.fileno()))
            if identity[2] <= IN_MEMORY:
                return cls.of(file.read())
            digest, oid = hashlib.sha256(), _git_hash(identity[2])
            small = identity[2] <= LARGEST_IN_COMMIT
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                if small:
                    oid.update(chunk)
            if _identity(os.fstat(file.fileno())) != identity:
                raise VerificationError(f"{data} changed while it was read; verify it again")
        return cls(data, identity[2], digest.hexdigest(), identity, oid.hexdigest() if small else None)

    def read(self) -> bytes:
        """Return the bytes that were hashed. Raises `VerificationError` if the file was changed since."""
        if isinstance(self.data, bytes):
            return self.data
        data = self.data.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise VerificationError(f"{self.data} changed after it was checked; verify it again")
        return data

    @property
    def unchanged(self) -> bool:
        """True if the file is the one that was hashed and still has these bytes, which are read again."""
        if isinstance(self.data, bytes):
            return True
        with contextlib.suppress(OSError, CheckpointError, VerificationError):
            again = Content.of(self.data)
            return (again.identity, again.sha256) == (self.identity, self.sha256)
        return False

    def git_oid(self) -> str:
        """Return git's name for these bytes: the SHA-1 of a header with the size and of the bytes."""
        if self.oid is not None:
            return self.oid
        header = _git_hash(self.size)
        with io.BytesIO(self.data) if isinstance(self.data, bytes) else open(self.data, "rb") as file:
            return hashlib.file_digest(file, lambda: header).hexdigest()


@dataclass(frozen=True)
class Checked:
    """The facts that the gate has checked by itself; all else are statements of the folder's files."""

    reverified: bool = False
    """True if the verification was repeated, and passed."""
    address: str | None = None
    """The place from which the source was fetched, if the hash stated there and a repeated comparison of every
    byte show it; see `convert.sources.provenance`."""


@dataclass(frozen=True)
class VerifiedFolder:
    """A folder that passed, with every file as it was hashed."""

    manifest: Manifest
    verification: dict[str, Any]
    """The content of `verification.json`."""
    result: Verification
    """The same as a value."""
    files: dict[str, Content]
    checked: Checked = Checked()


@dataclass(frozen=True)
class Gate:
    """The options of `check_folder`."""

    reverify: bool = False
    """Repeat the quick verification."""
    source: Path | None = None
    """The checkpoint that was converted, if it is not where the manifest says."""
    recordings: tuple[Path, ...] = (SHIPPED,)
    """Folders of recordings."""
    source_ws_eps: float | None = None
    """The epsilon that the source was trained with, if the manifest does not state it."""


AS_STORED = Gate()
"""The report is held to everything else, and no verification is repeated."""


def check_folder(folder: Path, progress: Progress, gate: Gate = AS_STORED) -> VerifiedFolder:
    """Hash every file in `folder`, and hold `verification.json` to the files, the manifest and the network.

    Raises `VerificationError` unless it reports a pass, number by number, by this version, for exactly
    these bytes, of every tap of the network, within tolerances that are derived again; or if the repeated
    verification fails. `CheckpointError` if the folder is not a conversion, or if the source is needed and missing.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST_NAME}; only folders that bit convert wrote can be published")
    files, problems = {}, []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            progress("hashing every file again", 0, 0)
            files[path.name] = Content.of(path)
        else:
            problems.append(f"{shown(path.name)} is not a file")
    manifest = Manifest.decode(files[MANIFEST_NAME].read(), folder / MANIFEST_NAME)
    if VERIFICATION_NAME not in files:
        raise VerificationError(f"{folder} is not verified; run bit verify {folder}")
    data = files[VERIFICATION_NAME].read()
    try:
        stored = StoredVerification.decode(data)
    except VerificationError as error:
        raise _refused(folder, [str(error)]) from None
    hashes = {name: content.sha256 for name, content in files.items() if name not in UNVERIFIED}
    problems += [*_faults(stored), *_changes(stored, files)]
    if problems := problems or compare_files(folder, manifest, hashes)[0]:
        raise _refused(folder, problems)
    with contextlib.ExitStack() as opened:
        converted = opened.enter_context(_opened(folder, manifest))
        recordings = find_recordings(manifest.origin.sha256, gate.recordings, manifest.origin.ws_eps)
        given = Inputs(manifest, converted, None, recordings)
        if gate.reverify or needs_source(stored.verification, given):
            given = _with_source(given, opened, folder, gate)
        if gate.reverify:
            given = replace(given, repeated=_repeat(folder, given, hashes, gate, progress))
        problems = [*_contradicted(manifest, converted, files), *contradictions(stored.verification, given, progress)]
    if problems:
        raise _refused(folder, problems)
    return VerifiedFolder(manifest, parse_record(data), stored.verification, files, _checked(given))


def _refused(folder: Path, problems: list[str]) -> VerificationError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return VerificationError(
        f"{folder} cannot be published: {problems[0]}{more}; run bit verify {folder} again", problems
    )


def _git_hash(size: int) -> hashlib._Hash:
    """Return the hash by which git names a file of `size` bytes, before these are added."""
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _opened(folder: Path, manifest: Manifest) -> Checkpoint:
    try:
        return Checkpoint(folder, manifest.name, manifest)
    except CheckpointError as error:
        raise _refused(folder, [str(error)]) from None


def _with_source(given: Inputs, opened: contextlib.ExitStack, folder: Path, gate: Gate) -> Inputs:
    """Open the source if it is there. Raises `CheckpointError` if it is another checkpoint."""
    path = gate.source if gate.source is not None else folder / given.manifest.source.path
    if gate.source is None and not path.exists():
        return given
    training = training_of(given.manifest, gate.source_ws_eps)
    source = opened.enter_context(Checkpoint(path, given.manifest.name, training=training))
    if not gate.reverify and combined_sha256(source.file.digests()) != given.manifest.source.sha256:
        raise CheckpointError(
            f"{path} is not what {folder} was converted from: the SHA-256 differs from {MANIFEST_NAME}; "
            "name the right checkpoint with --source"
        )
    return replace(given, source=source)


def _repeat(folder: Path, given: Inputs, hashes: Mapping[str, str], gate: Gate, progress: Progress) -> Verification:
    """Return the result of the quick verification, which must pass and must have read the bytes that were hashed."""
    try:
        result = verify(folder, given.manifest, given.source, Settings(recordings=gate.recordings), progress)
    except CheckpointError as error:
        raise CheckpointError(f"{error}, or leave out the repeated verification with --no-reverify") from None
    if result.verdict == INCOMPLETE and result.incomplete:
        reasons = result.incomplete
        raise IncompleteError(f"the repeated verification of {folder} {INCOMPLETE}: {reasons[0]}", reasons)
    problems = [*result.problems]
    compared: tuple[Check | PixelCheck, ...] = (*result.checks, *result.pixels)
    failed = [check for check in compared if not check.passed]
    if failed:
        problems.append(f"the repeated verification fails in {len(failed)} comparisons, first of {failed[0].input}")
    if result.files != hashes:
        problems.append("files changed while they were verified again")
    if problems or not result.passed:
        raise _refused(folder, problems or ["the repeated verification compared nothing"])
    return result


def _contradicted(manifest: Manifest, converted: Checkpoint, files: Mapping[str, Content]) -> list[str]:
    """Return the statements of the manifest that the weights, or the JSON files beside them, contradict."""
    companions = converted.companions()
    found = [*compare_manifest(manifest, companions, converted)]
    for name, expected in companions.items():
        if name in files and _json(files[name].read()) != expected:
            found.append(f"{name} does not fit {MANIFEST_NAME} and the weights")
    return found


def _json(data: bytes) -> Any:
    """Return the value in a JSON file, None if it is damaged."""
    with contextlib.suppress(ValueError):
        return parse_json(data)
    return None


def _checked(given: Inputs) -> Checked:
    repeated, source = given.repeated, given.source
    if repeated is None:
        return Checked()
    compared = source is not None and (repeated.tensors_exact or repeated.tensors_changed)
    place = address(source.path, given.manifest.source.files) if source is not None and compared else None
    return Checked(reverified=True, address=place)


def _faults(stored: StoredVerification) -> list[str]:
    """Return the reasons why this does not report a verification that passed in this version."""
    verifier, result = f"bit-convert {__version__}", stored.verification
    count = len(result.checks) + len(result.pixels)
    faults = {
        f"reports that it {INCOMPLETE} ({shown(next(iter(result.incomplete), None))})": bool(result.incomplete),
        "does not report a pass": not stored.passed,
        f"reports a problem ({shown(next(iter(result.problems), None))})": bool(result.problems),
        f"comes from {shown(stored.verifier)}, not from {verifier}": stored.verifier != verifier,
        "has no comparisons": not result.checks,
        f"has {stored.failed} of {count} comparisons over the tolerance": stored.failed > 0,
        "lists no files": not result.files,
    }
    if not any(faults.values()):
        faults[f"contradicts itself in {', '.join(stored.edited)}"] = bool(stored.edited)
    return [f"{VERIFICATION_NAME} {fault}" for fault, applies in faults.items() if applies]


def _changes(stored: StoredVerification, files: dict[str, Content]) -> list[str]:
    """Return the differences between the files and those that were verified."""
    listed = stored.verification.files
    missing = [f"{shown(name)} is missing" for name in sorted(set(listed) - set(files))]
    changed = [
        f"{shown(name)} was changed after the verification (different SHA-256)"
        for name, content in files.items()
        if name in listed and listed[name] != content.sha256
    ]
    page = files.get(REPORT_NAME)
    if page is None or stored.report != page.sha256:
        changed.append(f"{REPORT_NAME} is not the page that the verification wrote")
    added = [
        f"{shown(name)} was added after the verification" for name in sorted(set(files) - set(listed) - UNVERIFIED)
    ]
    return [*missing, *changed, *added]
