from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.command import assert_refused, bit, run_here
from support.conversions import LABELS, convert, with_config

from bit import BitForImageClassification, BitImageProcessorPil

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


@pytest.fixture(scope="module")
def folder(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = convert(tiny_npz, "transformers", tmp_path_factory.mktemp("classification") / "tiny")
    return with_config(path, id2label={str(index): label for index, label in LABELS.items()})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (60, 80, 3), "b.jpg": (120, 100, 3), "deep/c.png": (50, 50, 4)}.items():
        (path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path / name)
    (path / "notes.txt").write_text("no image")
    return path


def test_the_most_probable_labels_come_first(folder: Path, pictures: Path, tmp_path: Path) -> None:
    result = bit("classify", pictures / "a.png", "--model", folder, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(result.stdout).values()
    with Image.open(pictures / "a.png") as image:
        pixels = BitImageProcessorPil.from_profile("google")(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = BitForImageClassification.from_pretrained(folder)(pixels).logits.softmax(1)[0]
    assert [entry["label"] for entry in found] == [LABELS[i] for i in expected.argsort(descending=True).tolist()]
    assert [entry["probability"] for entry in found] == pytest.approx(expected.sort(descending=True).values.tolist())


def test_every_image_in_a_folder_is_classified(folder: Path, pictures: Path, tmp_path: Path) -> None:
    result = run_here("classify", pictures, "--model", folder, "--top", "2", cwd=tmp_path)
    lines = result.stdout.splitlines()
    assert [Path(line).name for line in lines[::3]] == ["a.png", "b.jpg", "c.png"]
    assert all(line.split()[0].endswith("%") and line.split()[1] in LABELS.values() for line in lines[1::3])


def test_a_file_that_is_not_an_image_or_a_model_gets_one_error_line(
    folder: Path, pictures: Path, tmp_path: Path
) -> None:
    for arguments, message in [
        ([pictures / "notes.txt", "--model", folder], "cannot be read as an image"),
        ([pictures / "absent.png", "--model", folder], "absent.png"),
        ([folder, "--model", folder], "holds no images"),
        ([pictures / "a.png", "--model", "nowhere"], "there is no folder 'nowhere'"),
        ([pictures / "a.png", "--model", pictures], "config.json"),
        ([pictures / "a.png"], "Missing option '--model'"),
    ]:
        assert_refused(run_here("classify", *arguments, cwd=tmp_path), message, tmp_path)


def test_the_pipeline_of_transformers_classifies_a_converted_folder(folder: Path, pictures: Path) -> None:
    """Alike for a large image, where both evaluate on the square of 480."""
    pipe = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    found = pipe(str(pictures / "b.jpg"))
    assert {entry["label"] for entry in found} == set(LABELS.values())
