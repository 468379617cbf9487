"""Sign a folder: the page, the attestation and `model.sig`, all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert.checkpoints.manifest import (
    ATTESTATION_NAME,
    CARD_NAME,
    REPORT_NAME,
    SIGNATURE_NAME,
    SIGNING_NAMES,
    VERIFICATION_NAME,
    Manifest,
)
from convert.checkpoints.training import Training
from convert.errors import UsageError, VerificationError
from convert.files.atomic import NewFolder
from convert.files.base import file_sha256
from convert.progress import Progress
from convert.reporting import html
from convert.signing.bundle import file_names, signed_files, write_signature
from convert.signing.check import Signature, check_folder_signature
from convert.signing.signers import Signer, signed_by
from convert.signing.statements import read_report, statements


@dataclass(frozen=True)
class Evidence:
    """A folder that is exactly as it was verified."""

    manifest: Manifest
    report: Mapping[str, Any]
    """The content of `verification.json`."""
    digests: Mapping[str, str]
    """SHA-256 of every file in the folder, by name."""


def sign_folder(folder: Path, evidence: Evidence, signer: Signer, card: bytes | None, progress: Progress) -> Signature:
    """Sign a folder whose files are those of the evidence, and return the signature.

    The page is written again, with the name of the signer, and `verification.json` with the digest of the page;
    a `card` becomes `README.md`. The signed folder replaces the old one in one step. Raises
    `VerificationError` if a file changed in the meantime, and `UsageError` for the current folder.
    """
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):  # a shell would be left in a folder that is gone
        raise UsageError(f"{folder} is replaced when it is signed: leave the folder, and name it from outside")
    progress("signing", 0, 0)
    verification, _ = read_report(json.dumps(evidence.report).encode())
    written = {*SIGNING_NAMES, VERIFICATION_NAME, REPORT_NAME, *([CARD_NAME] if card is not None else [])}
    kept = {name: sha256 for name, sha256 in evidence.digests.items() if name not in written}
    with NewFolder(folder, lambda _: [], force=True) as output:
        for name in kept:
            _link(folder / name, output.path / name)
        page, report = output.path / REPORT_NAME, output.path / VERIFICATION_NAME
        training = Training.beside(folder)
        page.write_text(html.render(verification, evidence.manifest, signed_by(signer.trust), training), "utf-8")
        report.write_text(json.dumps({**evidence.report, "report": file_sha256(page)}, indent=2) + "\n", "utf-8")
        if card is not None:
            (output.path / CARD_NAME).write_bytes(card)
        digests = kept | {path.name: file_sha256(path) for path in output.path.iterdir() if path.name not in kept}
        lines = [
            signer.sealed(json.dumps(statement).encode())
            for statement in statements(evidence.manifest, report.read_bytes(), digests)
        ]
        attestation = output.path / ATTESTATION_NAME
        attestation.write_bytes(b"".join(line + b"\n" for line in lines))
        write_signature(output.path, signer)
        digests |= {ATTESTATION_NAME: file_sha256(attestation)}
        signed = signed_files((output.path / SIGNATURE_NAME).read_bytes(), file_names(output.path, linked=False))
        if changed := [name for name in digests if signed[name] != digests[name]]:
            raise VerificationError(f"{folder / changed[0]} changed while it was signed; verify it again", changed)
        signature = check_folder_signature(output.path, signer.trust, progress)
        output.commit()
    return replace(signature, folder=folder)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
