from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.command import assert_refused, bit, run_here
from support.conversions import LABELS, convert, with_config
from support.odd import assert_one_line

from bit import BitForImageClassification, BitImageProcessorPil
from bit.image_folder.files import MAX_FILE_BYTES, open_image

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


IMAGE = np.random.default_rng(1).integers(0, 256, (24, 31, 3), dtype=np.uint8)
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(IMAGE[::-1])]}


def encoded(file: str, mode: str = "RGB", **options: Any) -> bytes:
    """Return `IMAGE` in the format that a file name ends in."""
    saved = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(saved, Image.registered_extensions()[Path(file).suffix], **options)
    return saved.getvalue()


@pytest.mark.parametrize(
    ("file", "mode", "options"),
    [
        *((f"a.{ending}", "RGB", {}) for ending in ("png", "jpg", "webp", "bmp", "gif")),
        *(("a.png", mode, {}) for mode in ("L", "LA", "1", "P", "RGBA", "I;16")),
        *(("a.jpg", mode, {}) for mode in ("L", "CMYK")),
        *((f"a.{ending}", "RGB", FRAMES) for ending in ("png", "webp", "gif")),
        ("a.png", "P", {"transparency": bytes(range(256))}),
    ],
)
def test_images_of_the_stated_formats_are_read_in_every_mode(
    tmp_path: Path, file: str, mode: str, options: dict[str, Any]
) -> None:
    (tmp_path / "image").write_bytes(encoded(file, mode, **options))
    image = open_image(tmp_path / "image")
    assert image.size == (31, 24)
    (pixels,) = BitImageProcessorPil(do_resize=False)(image)["pixel_values"]
    gray = mode in ("L", "LA", "1")
    expected = np.asarray(Image.fromarray(IMAGE).convert("L" if gray else "RGB").convert("RGB"), np.float32) / 127.5 - 1
    if mode in ("RGB", "L", "LA") and file in ("a.png", "a.bmp"):
        np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-6)
    assert np.isfinite(pixels).all()


@pytest.mark.parametrize("ending", ["tiff", "ppm", "eps", "ico", "tga", "pcx", "pdf", "sgi", "jp2", "avif"])
def test_other_formats_of_pillow_are_refused(tmp_path: Path, ending: str) -> None:
    Image.init()
    (tmp_path / "image.png").write_bytes(encoded(f"a.{ending}"))
    with pytest.raises(ValueError, match=r"image\.png cannot be read as an image .*use a JPEG, PNG, WebP, BMP or GIF"):
        open_image(tmp_path / "image.png")


def test_a_postscript_file_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("subprocess.Popen", started)
    (tmp_path / "a.jpg").write_bytes(encoded("a.eps"))
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read as an image"):
        open_image(tmp_path / "a.jpg")


def test_the_number_of_pixels_is_checked_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A megabyte of PNG can hold a billion pixels. Pillow warns at 89 million and refuses at twice as many."""
    header = bytearray(encoded("a.png")[:33])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it was decoded"))
    for width, height in ((13_344, 13_344), (5_000, 5_001), (60_000, 60_000)):
        header[16:24] = struct.pack(">II", width, height)
        header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
        (tmp_path / "a.png").write_bytes(header)
        with pytest.raises(ValueError, match="at most 25 megapixels") as caught:
            open_image(tmp_path / "a.png")
        assert_one_line(caught.value)


def test_only_regular_files_of_limited_size_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is not a regular file"):
            open_image(path)
    (tmp_path / "large.png").write_bytes(encoded("a.png"))
    os.truncate(tmp_path / "large.png", MAX_FILE_BYTES + 1)
    with pytest.raises(ValueError, match="is larger than 95 MiB"):
        open_image(tmp_path / "large.png")


def test_damaged_images_give_pixels_or_one_line(tmp_path: Path) -> None:
    files = [encoded(f"a.{ending}") for ending in ("png", "jpg", "webp", "bmp", "gif")]
    files += [encoded("a.gif", **FRAMES), encoded("a.jpg", "CMYK"), encoded("a.png", "P", transparency=bytes(256))]
    seeded, path, read = random.Random(0), tmp_path / "image", 0
    processor = BitImageProcessorPil(size={"height": 8, "width": 8})
    for number in range(1500):
        content = bytearray(seeded.choice(files))
        for _ in range(seeded.choice((1, 2, 4))):
            place = seeded.randrange(min(len(content), seeded.choice((60, 10_000))))
            match seeded.randrange(5):
                case 0:
                    del content[place : place + seeded.randrange(1, 30)]
                case 1:
                    content[place : place + 4] = seeded.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
                case 2:
                    content = content[: place + 1]
                case _:
                    content[place] = seeded.randrange(256)
        path.write_bytes(content if number else b"")
        try:
            processor(open_image(path))
            read += 1
        except ValueError as error:
            assert_one_line(error)
    assert 100 < read < 1400


def test_what_the_model_cannot_take_is_one_line_that_names_the_image(
    folder: Path, pictures: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    for changes, message in (
        ({"image_mean": [0.5], "image_std": [0.5]}, "the image has 3 channels, but image_mean has 1 values"),
        ({"size": 30_000}, "preprocessor_config.json: size is {'shortest_edge': 30000}; expected"),
    ):
        (other / "preprocessor_config.json").write_text(json.dumps({**settings, **changes}))
        assert_refused(run_here("classify", pictures / "a.png", "--model", other, cwd=tmp_path), message, tmp_path)


def test_outputs_that_are_not_finite_are_refused(folder: Path, pictures: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(folder, tmp_path / "other")
    state = load_file(other / "model.safetensors")
    state["classifier.1.bias"][2] = torch.nan
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    result = run_here("classify", pictures / "a.png", "--model", other, cwd=tmp_path)
    assert_refused(result, "the outputs of", tmp_path)


def test_the_pipeline_of_transformers_classifies_a_converted_folder(folder: Path, pictures: Path) -> None:
    """Alike for a large image, where both evaluate on the square of 480."""
    pipe = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    found = pipe(str(pictures / "b.jpg"))
    assert {entry["label"] for entry in found} == set(LABELS.values())
