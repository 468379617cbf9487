"""Write a verification into the converted folder: `verification.json` and `verification.html`."""

from __future__ import annotations

from pathlib import Path

from convert.checkpoints.manifest import REPORT_NAME, VERIFICATION_NAME, Manifest
from convert.files.atomic import new_file, write_json
from convert.files.base import file_sha256
from convert.reporting import html
from convert.verification.results import Verification


def write_report(folder: Path, verification: Verification, manifest: Manifest) -> str | None:
    """Write the report into `folder`; return why it could not be written, or None."""
    try:
        (folder / REPORT_NAME).unlink(missing_ok=True)
        with new_file(folder / REPORT_NAME) as partial:
            partial.write_text(html.render(verification, manifest), "utf-8")
        report = {"report": file_sha256(folder / REPORT_NAME)}
        write_json(folder / VERIFICATION_NAME, {**verification.to_dict(), **report})
    except OSError as error:
        return f"the report could not be written to {folder}: {error.strerror}"
    return None
