"""`bit finetune`: the result is a conversion like any other, and what cannot be trained is refused in one line."""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.command import run_here
from support.images import stripes
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import convert
from bit.finetuning.engine import Step
from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.manifest import Manifest
from convert.checkpoints.training import Training
from convert.finetuning.run import FinetuneResult
from convert.reporting.html import render

pytestmark = pytest.mark.usefixtures("small_inputs")

SMALL: dict[str, Any] = {"size": 16, "batch": 4, "steps": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images of each of two classes, not to be changed."""
    return stripes(tmp_path_factory.mktemp("images") / "lines", 10)


@pytest.fixture(scope="module")
def tuned(tiny_npz: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """A finished training, not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convert.verification.network.INPUTS", {"square": (1, 2, 64, 64), "odd": (2, 1, 49, 65)})
        patch.setattr("convert.reporting.html.render", lambda *values: "")
        return convert.finetune(tiny_npz, data, tmp_path_factory.mktemp("tuned") / "lines", **SMALL)


def copied(result: FinetuneResult, folder: Path) -> Path:
    """Copy the result with the folder of the training."""
    for path in (result.folder, result.folder.with_name(f"{result.folder.name}.training")):
        shutil.copytree(path, folder / path.name)
    return folder / result.folder.name


def test_the_result_is_verified_and_says_how_it_was_made(tuned: FinetuneResult, data: Path) -> None:
    assert tuned.finished
    assert tuned.conversion is not None
    assert tuned.conversion.verification.passed
    training = Training.beside(tuned.folder)
    assert training == tuned.training
    assert training is not None
    assert (training.checkpoint, training.data.name) == ("tiny", "lines")
    assert (training.data.training_images, training.data.validation_images, training.data.classes) == (16, 4, 2)
    assert training.changed == ("schedule", "resolution", "batch")
    assert training.settings["schedule"]["total"] == len(training.curve.loss) == 4
    assert training.accuracy is not None
    assert {"torch", "transformers", "accelerate", "device"} <= training.versions.keys()
    config = json.loads((tuned.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "lying", "1": "standing"}
    assert config["ws_eps"] == 1e-10
    processor = BitImageProcessorPil.from_pretrained(tuned.folder)
    image = np.zeros((40, 30, 3), np.uint8)
    assert processor(image)["pixel_values"][0].shape == (3, 16, 16)
    assert (processor.image_mean, processor.image_std) == ([0.5] * 3, [0.5] * 3)
    head = load_file(tuned.folder / "model.safetensors")["classifier.1.weight"]
    assert head.shape[0] == 2
    assert head.any(), "it was trained"


@pytest.mark.parametrize("layout", ["timm", "google", "flax"])
def test_the_result_converts_to_other_layouts(layout: str, tuned: FinetuneResult, tmp_path: Path) -> None:
    result = convert.convert(tuned.folder, layout, tmp_path / "out")
    assert result.verification.passed
    assert Training.beside(result.folder) == tuned.training, "the record travels with the weights"
    assert not convert.convert(tuned.folder, layout, tmp_path / "out").created, "it is recognized"
    back = convert.convert(result.folder, "transformers", tmp_path / "back")
    same = (back.folder / "model.safetensors").read_bytes() == (tuned.folder / "model.safetensors").read_bytes()
    assert same
    if layout == "timm":
        config = json.loads((result.folder / "config.json").read_text())
        assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
        assert config["pretrained_cfg"]["crop_mode"] == "squash"
        assert config["label_names"] == ["lying", "standing"]
        assert (back.folder / "preprocessor_config.json").read_text() == (
            tuned.folder / "preprocessor_config.json"
        ).read_text()


def test_converting_again_gives_the_same_bytes(tuned: FinetuneResult, tmp_path: Path) -> None:
    result = convert.verify(copied(tuned, tmp_path), references=["pytorch"], replay=True)
    assert result.passed
    assert result.replay is not None
    assert "training.json" in result.replay.identical


def test_a_changed_record_is_found(tuned: FinetuneResult, tmp_path: Path) -> None:
    folder = copied(tuned, tmp_path)
    text = (folder / "training.json").read_text()
    (folder / "training.json").write_text(text.replace('"lines"', '"other"'))
    assert any("training.json has changed" in problem for problem in convert.verify(folder, full=False).problems)


def test_the_same_call_finds_the_result_and_another_is_refused(
    tuned: FinetuneResult, tiny_npz: Path, data: Path, tmp_path: Path
) -> None:
    folder = copied(tuned, tmp_path)
    again = convert.finetune(tiny_npz, data, folder, **SMALL)
    assert again.conversion is not None
    assert not again.conversion.created
    assert again.training == tuned.training
    with pytest.raises(convert.CheckpointError, match="exists and is not the result of this training; choose another"):
        convert.finetune(tiny_npz, data, folder, **{**SMALL, "seed": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(convert.CheckpointError, match="mine exists and is not the result of this training"):
        convert.finetune(tiny_npz, data, tmp_path / "mine", **SMALL)


def test_other_settings_do_not_go_on_with_a_training(tiny_npz: Path, data: Path, tmp_path: Path) -> None:
    def kill(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.finetune(tiny_npz, data, tmp_path / "out", report=kill, **SMALL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        convert.CheckpointError, match=r"a training with base_lr 0\.003, not base_lr 0\.1; repeat the sa"
    ):
        convert.finetune(tiny_npz, data, tmp_path / "out", lr=0.1, **SMALL)
    other = stripes(tmp_path / "lines", 11)
    with pytest.raises(convert.CheckpointError, match="a training with training_sha256"):
        convert.finetune(tiny_npz, other, tmp_path / "out", **SMALL)
    assert convert.finetune(tiny_npz, other, tmp_path / "out", force=True, verify=False, **SMALL).finished


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "one class": (lambda folder: shutil.rmtree(folder / "lying"), {}, "class"),
    "no images": (lambda folder: [path.unlink() for path in folder.glob("*/*")], {}, "no images"),
    "a damaged image": (lambda folder: (folder / "lying" / "0.png").write_bytes(b"PNG"), {}, r"0\.png"),
    "an empty image": (lambda folder: (folder / "lying" / "0.png").write_bytes(b""), {}, r"0\.png"),
    "a batch that is not divided": (lambda folder: None, {"micro_batch": 3}, "4 images cannot be split into .* 3"),
    "another head": (lambda folder: None, {"keep_head": True}, "the data has 2 classes, but the head of tiny has 5"),
    "a rate": (lambda folder: None, {"lr": -1.0}, "learning rate is -1"),
    "a precision": (lambda folder: None, {"precision": "fp8"}, "unknown precision 'fp8'; choose from fp32, bf16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_line(case: str, tiny_npz: Path, tmp_path: Path) -> None:
    spoil, options, message = REFUSED[case]
    data = stripes(tmp_path / "data", 3)
    spoil(data)
    with pytest.raises(convert.ConvertError, match=message) as error:
        convert.finetune(tiny_npz, data, tmp_path / "out", **{**SMALL, **options})
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("out.training")) == ["data"]
    assert not (tmp_path / "out.training").exists(), "nothing was begun"


def test_what_was_refused_before_it_began_does_not_stand_in_the_way(
    tiny_npz: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither if nothing is left of it, nor if a kill has left the statement of what was to be trained."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("convert.finetuning.run.write", full)
        with pytest.raises(OSError, match="No space"):
            convert.finetune(tiny_npz, data, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out.training").exists()
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / "run.json").write_text('{"keep_head": true}')
    options = {**SMALL, "steps": 1, "verify": False}
    assert convert.finetune(tiny_npz, data, tmp_path / "out", **options).finished


def test_few_images_and_bad_ones_can_be_trained_with(tiny_npz: Path, tmp_path: Path) -> None:
    data = stripes(tmp_path / "data", 3)
    (data / "lying" / "0.png").write_bytes(b"")
    result = convert.finetune(
        tiny_npz, data, tmp_path / "out", skip_bad_images=True, verify=False, **{**SMALL, "steps": 1}
    )
    assert result.training is not None
    assert result.training.data.skipped == len(result.skipped) == 1
    assert "0.png" in result.skipped[0]


def test_a_missing_library_is_a_usage_error(tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convert.finetuning.run.NEEDS", ("no_such_package",))
    with pytest.raises(convert.UsageError, match=r"no_such_package is not installed; .*\[finetune\]"):
        convert.finetune(tiny_npz, tmp_path, tmp_path / "out")


def test_the_command_prints_progress_and_the_accuracy(tiny_npz: Path, data: Path, tmp_path: Path) -> None:
    options = ["--size", "16", "--batch", "4", "--steps", "2", "--no-verify"]
    result = run_here("finetune", tiny_npz, "--data", data, "--out", "out", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(
        r"^step 2 of 2: loss \d\.\d{4}, accuracy \d+\.\d%, rate 0\.003, \d+ images/s, 0:00 left$",
        result.stderr,
        re.MULTILINE,
    )
    assert re.search(r"^accuracy \d+\.\d\d% of 4 validation images$", result.stdout, re.MULTILINE)
    assert "load it with:" in result.stdout
    again = run_here("finetune", tiny_npz, "--data", data, "--out", "out", *options, "--json", cwd=tmp_path)
    values = json.loads(again.stdout)
    assert values["steps"] == values["resumed_from"] == 2
    assert 0 <= values["accuracy"] <= 1


def test_a_training_that_diverges_exits_with_three(
    tiny_npz: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = lambda logits, labels: logits.sum() * float("nan")  # noqa: E731
    monkeypatch.setattr("bit.finetuning.engine.functional.cross_entropy", nan)
    options = ["--size", "16", "--batch", "4", "--steps", "2"]
    result = run_here("finetune", tiny_npz, "--data", data, "--out", "out", *options, cwd=tmp_path)
    assert result.returncode == 3
    assert "error: the loss of step 1 is nan: choose a smaller learning rate" in result.stderr.splitlines()
    assert not (tmp_path / "out").exists()


def test_the_example_script_of_transformers_begins_with_a_head_of_zeros(tiny_npz: Path, tmp_path: Path) -> None:
    """With the calls of `run_image_classification.py`: the classes of the images go into the configuration."""
    start = convert.convert(tiny_npz, out=tmp_path / "start", head="new:2", profile="google:16", verify=False).folder
    names = {"id2label": {"0": "lying", "1": "standing"}, "label2id": {"lying": "0", "standing": "1"}}
    config = AutoConfig.from_pretrained(start, num_labels=2, finetuning_task="image-classification", **names)
    model = AutoModelForImageClassification.from_pretrained(start, config=config)
    assert not any(bool(value.any()) for value in model.classifier.parameters())
    pixels = torch.rand(4, 3, 16, 16)
    assert model(pixels, labels=torch.tensor([0, 1, 0, 1])).loss.item() == pytest.approx(math.log(2))
    processor = AutoImageProcessor.from_pretrained(start)
    assert (processor.size["height"], processor.size["width"]) == (16, 16)


def test_the_report_shows_loss_and_accuracy(tuned: FinetuneResult) -> None:
    manifest = Manifest.read(tuned.folder)
    assert manifest is not None
    assert tuned.conversion is not None
    text = render(tuned.conversion.verification, manifest, None, tuned.training)
    assert '<h2 id="training">Training</h2>' in text
    assert "fine-tuned on 16 images of lines in 2 classes" in text
    assert tuned.training is not None
    assert f"<strong>{tuned.training.accuracy:.2%}</strong>" in text
    assert text.count('aria-labelledby="curve-title curve-summary"') == 2
    assert "validation accuracy" in text
    without = render(tuned.conversion.verification, manifest)
    assert "curve-title" not in without
