"""Check the signature of a folder, the attestation and every byte, before anything else is read there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from bit import __version__
from convert.checkpoints.manifest import (
    ATTESTATION_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    VERIFICATION_NAME,
    Manifest,
    is_signed,
)
from convert.errors import ConvertError, VerificationError
from convert.files.base import shown
from convert.progress import Progress
from convert.signing.bundle import MAX_BYTES, check_signature, file_names, signed_files
from convert.signing.keys import require_packages
from convert.signing.signers import Trust
from convert.signing.statements import EQUIVALENCE, PROVENANCE, STATEMENT, Equivalence, named, statements

VERIFIER = f"bit-convert {__version__}"
"""Statements of this version are made again and compared; those of another may have further fields."""
MAX_ATTESTATION = 64 << 20
"""Largest `conversion.intoto.json`; R152x4 verified by every reference implementation takes 2 MB."""


@dataclass(frozen=True)
class Signature:
    """A signature that was checked, with what it shows."""

    folder: Path
    signer: str
    """The fingerprint of the key, or the identity and the provider of it."""
    files: Mapping[str, str]
    """SHA-256 of every signed file, by name."""
    verified_on: str
    """Time at which the signer says the folder was verified."""
    comparisons: int
    """Number of taps that the attestation states."""

    @property
    def words(self) -> str:
        """One line that says what the signature shows and what it does not."""
        return (
            f"signed by {self.signer}: all {len(self.files)} files are byte for byte those that the signer attests "
            f"to have verified ({self.comparisons} comparisons, {self.verified_on[:10]}); not shown: that the signer "
            "is to be trusted, did make these comparisons, and has signed nothing newer"
        )

    def check_same(self, files: Mapping[str, str]) -> None:
        """Raise `VerificationError` unless files, as they were read later, have the SHA-256 that was signed."""
        if changed := [name for name, sha256 in files.items() if self.files.get(name) != sha256]:
            raise VerificationError(f"{self.folder / shown(changed[0])} changed after the signature was checked")


def check_folder_signature(folder: Path, trust: Trust, progress: Progress, linked: bool = False) -> Signature:
    """Check `model.sig`, the bytes of every file, and both statements of the attestation.

    With `linked` the files may be symbolic links, as in huggingface_hub's cache. Raises `VerificationError`
    for anything that is not exactly as the signer left it.
    """
    require_packages()
    progress("checking the signature", 0, 0)
    try:
        return replace(_checked(folder.resolve(), trust, linked), folder=folder)
    except VerificationError as error:
        raise VerificationError(f"{folder} does not pass: {error}", [str(error)]) from None


def _checked(folder: Path, trust: Trust, linked: bool) -> Signature:
    if not is_signed(folder):
        raise VerificationError(f"it is not signed: there is no {SIGNATURE_NAME}; sign it with bit sign")
    names = file_names(folder, linked)
    for name in (MANIFEST_NAME, VERIFICATION_NAME, ATTESTATION_NAME):
        if name not in names:
            raise VerificationError(f"{name} is missing")
    data = _read(folder / SIGNATURE_NAME, MAX_BYTES, linked)
    files = signed_files(data, names)
    check_signature(folder, data, trust, linked)
    lines = _read(folder / ATTESTATION_NAME, MAX_ATTESTATION, linked).split(b"\n")
    if len(lines) != 3 or lines[2]:
        raise VerificationError(f"{ATTESTATION_NAME} does not hold two lines")
    found = dict(_statement(line, trust) for line in lines[:2])
    evidence = _attested(found, {name: sha256 for name, sha256 in files.items() if name != ATTESTATION_NAME})
    if evidence.verifier == VERIFIER:
        _compare(folder, found, files)
    return Signature(folder, trust.name, files, evidence.verified_on, sum(len(run.taps) for run in evidence.runs))


def _read(path: Path, most: int, linked: bool) -> bytes:
    if path.is_symlink() and not linked:
        raise VerificationError(f"{path.name} is not a regular file")
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise VerificationError(f"{path.name} has more than {most} bytes")
    return data


def _statement(line: bytes, trust: Trust) -> tuple[str, dict[str, Any]]:
    """Return the type of a statement, and the statement."""
    try:
        statement = dict(json.loads(trust.opened(line)))
        return str(statement["predicateType"]), statement
    except VerificationError as error:
        raise VerificationError(f"{ATTESTATION_NAME}: {error}") from None
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise VerificationError(f"{ATTESTATION_NAME} holds something other than a statement ({shown(error)})") from None


def _attested(found: Mapping[str, dict[str, Any]], digests: Mapping[str, str]) -> Equivalence:
    """Return the evidence, if both statements are there and are about exactly these files."""
    for kind in (PROVENANCE, EQUIVALENCE):
        if kind not in found:
            raise VerificationError(f"{ATTESTATION_NAME} has no statement of the type {kind}")
        if (found[kind].get("_type"), found[kind].get("subject")) != (STATEMENT, named(digests)):
            raise VerificationError(f"{ATTESTATION_NAME}: {kind} is about other files or other bytes")
    try:
        evidence = msgspec.convert(found[EQUIVALENCE]["predicate"], Equivalence)
    except (ValueError, LookupError) as error:
        raise VerificationError(f"{ATTESTATION_NAME}: {EQUIVALENCE} is not as described ({shown(error)})") from None
    if evidence.verification.digest.sha256 != digests[VERIFICATION_NAME]:
        raise VerificationError(f"{ATTESTATION_NAME}: {EQUIVALENCE} is about another {VERIFICATION_NAME}")
    return evidence


def _compare(folder: Path, found: Mapping[str, dict[str, Any]], files: Mapping[str, str]) -> None:
    """Make the statements of this version once more, and compare every field."""
    try:
        contents = {name: (folder / name).read_bytes() for name in (MANIFEST_NAME, VERIFICATION_NAME)}
        for name, data in contents.items():
            if hashlib.sha256(data).hexdigest() != files[name]:
                raise VerificationError(f"{name} changed while it was checked")
        manifest = Manifest.decode(contents[MANIFEST_NAME], folder / MANIFEST_NAME)
        digests = {name: sha256 for name, sha256 in files.items() if name != ATTESTATION_NAME}
        made = statements(manifest, contents[VERIFICATION_NAME], digests)
    except VerificationError:
        raise
    except (KeyError, ConvertError) as error:
        raise VerificationError(f"{MANIFEST_NAME} and {VERIFICATION_NAME} do not fit: {shown(error)}") from None
    for expected in made:
        statement = found[expected["predicateType"]]
        if statement != expected:
            part = next((name for name in expected if statement.get(name) != expected[name]), "a field")
            raise VerificationError(
                f"{ATTESTATION_NAME}: {part} of {expected['predicateType']} is not that of this folder"
            )
