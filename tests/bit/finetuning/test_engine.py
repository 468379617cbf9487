"""The engine takes the steps of Google's own training code, and ends with the same bits however often it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.training import RECORDED, RecordedImages, RecordedMixup, network, recorded_errors, settings_of

from bit.finetuning.engine import Data, finetune
from convert.references.training import FOLDER, TrainingRecording

@pytest.mark.parametrize("name", RECORDED)
def test_the_engine_takes_googles_training_steps(name: str, tmp_path: Path) -> None:
    recording = TrainingRecording.read(FOLDER / f"{name}.safetensors")
    settings = settings_of(recording.about)
    data = Data(RecordedImages(recording.about), None, RecordedMixup(settings.mixup, settings.split))
    model = network(recording)
    outcome = finetune(model, data, settings, tmp_path / "run")
    assert outcome.finished
    assert outcome.curve.learning_rate == pytest.approx(recording.arrays["learning_rate"].tolist(), rel=1e-15)
    errors = recorded_errors(recording, model, outcome.curve.loss)
    assert {key: error for key, error in errors.items() if not error < 1e-9} == {}
