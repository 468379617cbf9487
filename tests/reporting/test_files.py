from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.reports import small

from convert.checkpoints.manifest import REPORT_NAME, VERIFICATION_NAME
from convert.files.base import file_sha256
from convert.reporting.files import write_report
from convert.reporting.html import render


def test_the_page_and_the_numbers_are_written(tmp_path: Path) -> None:
    verification, manifest = small()
    assert write_report(tmp_path, verification, manifest) is None
    assert (tmp_path / REPORT_NAME).read_text("utf-8") == render(verification, manifest)
    values = json.loads((tmp_path / VERIFICATION_NAME).read_text("utf-8"))
    assert values.pop("report") == file_sha256(tmp_path / REPORT_NAME)
    assert values == json.loads(json.dumps(verification.to_dict()))


@pytest.mark.parametrize("name", [REPORT_NAME, VERIFICATION_NAME])
def test_a_report_that_cannot_be_written_is_reported(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "in the way").mkdir(parents=True)
    reason = write_report(tmp_path, *small())
    assert reason is not None
    assert reason.startswith(f"the report could not be written to {tmp_path}: ")
