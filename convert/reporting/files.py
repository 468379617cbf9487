"""Write a verification into the converted folder: `verification.json` and `verification.html`."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from convert.checkpoints.manifest import REPORT_NAME, VERIFICATION_NAME, Manifest
from convert.checkpoints.records import parse_record
from convert.checkpoints.training import Training
from convert.files.atomic import json_text, new_file
from convert.files.base import open_regular
from convert.reporting import html
from convert.verification.results import INCOMPLETE, Verification


def write_report_file(path: Path, verification: Verification, manifest: Manifest) -> None:
    """Write the report to one file, a page if the name ends with `.html`, else JSON. Raises `OSError`."""
    page = path.suffix.lower() == ".html"
    text = html.render(verification, manifest) if page else json_text(verification.to_dict())
    with new_file(path) as partial:
        partial.write_text(text, "utf-8")


def keeps_pass(folder: Path, verification: Verification) -> bool:
    """Return whether `folder` keeps its report: of a pass with these files, while this one is incomplete."""
    if verification.verdict != INCOMPLETE:
        return False
    with contextlib.suppress(OSError, ValueError), open_regular(folder / VERIFICATION_NAME) as file:
        stored = parse_record(file.read())
        return stored.get("passed") is True and stored.get("files") == dict(verification.files)
    return False


def write_report(folder: Path, verification: Verification, manifest: Manifest, shown: Path | None = None) -> str | None:
    """Write both files of the report into `folder`, or neither; return why they were not written, or None.

    `shown` is the path of the folder in that sentence, if it is another. See also `keeps_pass`.
    """
    if keeps_pass(folder, verification):
        return (
            f"{(shown or folder) / VERIFICATION_NAME} reports a pass and was kept: this verification {INCOMPLETE}; "
            "--report FILE writes a report of it"
        )
    try:
        page = html.render(verification, manifest, None, Training.beside(folder)).encode()
        report = {"report": hashlib.sha256(page).hexdigest()}
        numbers = json_text({**verification.to_dict(), **report}).encode()
        with new_file(folder / VERIFICATION_NAME) as for_numbers, new_file(folder / REPORT_NAME) as for_page:
            for_page.write_bytes(page)
            for_numbers.write_bytes(numbers)
    except OSError as error:
        return f"the report could not be written to {shown or folder}: {error.strerror or error}"
    return None
