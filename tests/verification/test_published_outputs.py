"""The logits that are public for `google/bit-50`, tried with seeded weights in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.conversions import convert

from bit.image_processing import BitImageProcessorPil
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.inputs import images
from convert.references.registry import CONVERTED
from convert.verification import published_outputs
from convert.verification.candidate import Candidate
from convert.verification.results import Check


@pytest.fixture
def source(tiny_npz: Path, tmp_path: Path) -> Path:
    shutil.copy(tiny_npz, tmp_path / "bit-50.npz")
    BitImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    return tmp_path / "bit-50.npz"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(((images(5, 1, 80, 90)[0] + 1) * 127).astype(np.uint8)).save(tmp_path / "cats.png")
    return tmp_path / "cats.png"


def compared(source: Path, image: Path | None, folder: Path) -> Check | str:
    convert(source, "transformers", folder)
    with Checkpoint(folder) as written:
        assert written.record is not None
        subject = Candidate(CONVERTED, written, written.record.origin)
        return published_outputs.compare(subject, image, source.parent)


def test_other_weights_of_that_name_are_told_from_the_real_ones(source: Path, image: Path, tmp_path: Path) -> None:
    check = compared(source, image, tmp_path / "out")
    assert isinstance(check, Check)
    assert not check.passed
    assert 5e-5 < check.tolerance < 2e-4, "each of three logits around 1 may be off by 1e-4"


def test_weights_that_give_the_published_logits_pass(
    source: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert.network import oracle

    pixels = BitImageProcessorPil.from_pretrained(tmp_path)(Image.open(image), return_tensors="np")["pixel_values"]
    with Checkpoint(source) as checkpoint:
        config = checkpoint.config.replace(ws_eps=published_outputs.EPSILON)
        *_, (_, logits) = oracle.forward(checkpoint.weights, config, {"": pixels.transpose(0, 2, 3, 1)})
    monkeypatch.setattr(published_outputs, "LOGITS", logits[""][0, :3])
    check = compared(source, image, tmp_path / "out")
    assert isinstance(check, Check)
    assert check.passed


def test_without_weights_or_image_it_is_said_why_it_was_not_run(source: Path, tiny_npz: Path, tmp_path: Path) -> None:
    assert "is not there" in str(compared(source, tmp_path / "absent.jpg", tmp_path / "out"))
    assert compared(tiny_npz, None, tmp_path / "other") == "these are other weights"


def test_a_file_that_is_no_image_is_an_error_in_words(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cats.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cats\.png"):
        compared(source, tmp_path / "cats.png", tmp_path / "out")
