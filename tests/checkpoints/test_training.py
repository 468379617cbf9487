"""`training.json` is read strictly; a file of that name of another program is not taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoints.training import TRAINING_NAME, DataUsed, Evaluated, Training, TrainingCurve

RECORD = Training(
    "tiny",
    "0" * 64,
    DataUsed("lines", 16, 4, 2, "1" * 64, "2" * 64, skipped=1),
    {"batch": 4, "schedule": {"total": 2, "boundaries": [1, 2]}},
    ("batch",),
    {"torch": "2.15.0"},
    TrainingCurve([0.7, 0.5], [0.0, 0.003], [Evaluated(2, 0.6, 0.75)]),
)


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    (tmp_path / TRAINING_NAME).write_text(json.dumps(RECORD.to_dict()))
    assert Training.beside(tmp_path) == RECORD
    assert RECORD.accuracy == 0.75


CHANGES: dict[str, Any] = {
    "another schema": {"schema": 2},
    "no settings": {"settings": None},
    "a control character": {"checkpoint": "ti\u001bny"},
    "no hash": {"checkpoint_sha256": "abc"},
    "an accuracy above 1": {"curve": {"loss": [1.0], "learning_rate": [0.1], "evaluations": [[1, 1.0, 2.0]]}},
    "a loss without a rate": {"curve": {"loss": [1.0, 0.5], "learning_rate": [0.1], "evaluations": []}},
    "text for a loss": {"curve": {"loss": ["1.0"], "learning_rate": [0.1], "evaluations": []}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_is_not_a_record(change: str, tmp_path: Path) -> None:
    (tmp_path / TRAINING_NAME).write_text(json.dumps({**RECORD.to_dict(), **CHANGES[change]}))
    assert Training.beside(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", '{"steps": 3}', '{"a": NaN}', "{" * 100_000])
def test_a_file_of_another_program_is_not_a_record(text: str, tmp_path: Path) -> None:
    assert Training.beside(tmp_path) is None
    (tmp_path / TRAINING_NAME).write_text(text)
    assert Training.beside(tmp_path) is None
