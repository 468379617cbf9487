from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.odd import assert_one_line

from bit.image_folder import read_images, split_by_class, splits
from bit.image_folder.files import open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def save(path: Path, seed: int = 0, **options: Any) -> Path:
    """Write a small seeded image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with two classes of three images."""
    for number in range(3):
        save(tmp_path / "data" / "cat" / f"{number}.png", number)
        save(tmp_path / "data" / "dog" / "deep" / f"{number}.png", 10 + number)
    (tmp_path / "data" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path / "data"


def test_folders_are_classes_in_order_of_their_names(data: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    images = read_images(data, progress=lambda *step: seen.append(step))
    assert images.classes == ("cat", "dog")
    assert images.labels == (0, 0, 0, 1, 1, 1)
    assert images.name(4) == str(data / "dog" / "deep" / "1.png")
    assert (images.size(4), images.open(4).size, images.open(4).mode) == ((6, 9), (9, 6), "RGB")
    np.testing.assert_array_equal(
        images.open(1), np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8), strict=True
    )
    assert seen[-1] == ("reading images", 6, 6)


def test_a_subset_keeps_the_classes(data: Path) -> None:
    part = read_images(data).subset([5, 0])
    assert (part.classes, part.labels, len(part)) == (("cat", "dog"), (1, 0), 2)
    assert [Path(part.name(i)).parts[-2:] for i in range(2)] == [("deep", "2.png"), ("cat", "0.png")]


def test_the_fingerprint_follows_the_content_and_not_the_place(data: Path, tmp_path: Path) -> None:
    first = read_images(data).fingerprint()
    assert len(first) == 64
    assert read_images(shutil.copytree(data, tmp_path / "copy")).fingerprint() == first
    assert read_images(data).subset(range(5)).fingerprint() != first
    save(data / "cat" / "0.png", 99)
    assert read_images(data).fingerprint() != first
    shutil.move(data / "cat", data / "cats")
    save(data / "cats" / "0.png", 0)
    assert read_images(data).fingerprint() != first


def test_the_digits_are_the_same_everywhere() -> None:
    images = read_images("digits")
    assert (len(images), images.classes, images.size(0)) == (1797, tuple("0123456789"), (8, 8))
    first = np.asarray(images.open(0))
    assert first.shape == (8, 8, 3)
    assert first[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert images.fingerprint() == "70aede58f466f822ce77ae10b1e06f9f194dc3a5d884da388624b5782d8f395d"
    train, validation = splits("digits")
    assert (len(train), len(validation)) == (1438, 359)
    assert (
        validation.fingerprint()
        == read_images("digits", split="val").fingerprint()
        == "64dda4f578b3b155c85061d1866632625a4d9f356eb6b83f94cf236aca27ff1a"
    )


def test_a_seeded_split_takes_the_share_of_each_class(data: Path, tmp_path: Path) -> None:
    train, validation = splits(data, seed=3, validation_share=1 / 3)
    assert (train.labels, validation.labels) == ((0, 0, 1, 1), (0, 1))
    assert not {train.name(i) for i in range(4)} & {validation.name(i) for i in range(2)}
    moved = splits(shutil.copytree(data, tmp_path / "copy"), seed=3, validation_share=1 / 3)
    assert [part.fingerprint() for part in moved] == [train.fingerprint(), validation.fingerprint()]
    assert len({split_by_class(read_images(data), seed)[1].fingerprint() for seed in range(9)}) > 1


def test_train_and_val_are_read_where_they_are(data: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(data, both / "train")
    for label in ("cat", "dog"):
        save(both / "validation" / label / "x.png", 7)
    train, validation = splits(both)
    assert (len(train), len(validation)) == (6, 2)
    assert [len(read_images(both, split=split)) for split in (None, "train", "val", "validation")] == [2, 6, 2, 2]
    with pytest.raises(ValueError, match="has no split 'best'; it has train, validation"):
        read_images(both, split="best")
    save(both / "validation" / "emu" / "x.png", 7)
    with pytest.raises(ValueError, match=r"have different classes \(only validation has emu\)"):
        splits(both)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("test", "train"):
        save(tmp_path / label / "a.png")
    assert read_images(tmp_path).classes == ("test", "train")


def bad(name: str) -> bytes:
    saved = io.BytesIO()
    Image.fromarray(PIXELS).save(saved, "PNG")
    whole = saved.getvalue()
    header = bytearray(whole[:33])
    header[16:24] = struct.pack(">II", 40_000, 40_000)
    header[29:33] = struct.pack(">I", zlib.crc32(header[12:29]))
    return {"empty": b"", "text": b"not an image", "truncated": whole[:-300], "huge": bytes(header)}[name]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "huge"])
def test_a_bad_image_is_named_and_may_be_skipped(data: Path, kind: str) -> None:
    (data / "cat" / "1.png").write_bytes(bad(kind))
    with pytest.raises(
        ValueError, match=r"cat/1\.png cannot be read as an image .*, or leave out bad images with --skip-bad-images$"
    ) as caught:
        read_images(data)
    assert_one_line(caught.value)
    assert "bomb" not in str(caught.value), "Pillow's words for too many pixels"
    images = read_images(data, skip_bad=True)
    assert (images.labels, len(images.skipped)) == ((0, 0, 1, 1, 1), 1)
    assert "cat/1.png" in images.skipped[0]
    assert images.name(1) == str(data / "cat" / "2.png")


def test_a_link_to_a_missing_image_is_a_bad_image(data: Path) -> None:
    (data / "cat" / "1.png").unlink()
    (data / "cat" / "1.png").symlink_to("absent.png")
    with pytest.raises(OSError, match=r"cat/1\.png"):
        read_images(data)
    assert read_images(data, skip_bad=True).skipped == (f"{data}/cat/1.png: No such file or directory",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: shutil.rmtree(data / "dog"), r"holds images of one class \(cat\)"),
        (lambda data: shutil.rmtree(data / "dog" / "deep"), r"dog holds no images \(.bmp, .gif"),
        (lambda data: [shutil.rmtree(data / name) for name in ("cat", "dog")], "data holds no images; give a folder"),
        (lambda data: save(data / "loose.png"), r"loose\.png is in no class; put each image into a folder"),
        (lambda data: shutil.rmtree(data), "there is no folder"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    data: Path, change: Callable[[Path], object], message: str
) -> None:
    change(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_images(str(data))
    assert_one_line(caught.value)


def test_no_image_that_can_be_read_is_refused(data: Path) -> None:
    for file in data.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no image that can be read; the first: .*0\.png"):
        read_images(data, skip_bad=True)


@pytest.mark.parametrize(
    ("mode", "ending", "options"),
    [
        *((mode, "png", {}) for mode in ("L", "LA", "1", "P", "RGBA", "I;16")),
        *((mode, "jpg", {"quality": 95}) for mode in ("L", "CMYK")),
        *(
            ("RGB", ending, {"save_all": True, "append_images": [Image.new("RGB", (16, 12))]})
            for ending in ("gif", "webp")
        ),
    ],
)
def test_every_mode_gives_eight_bits_of_red_green_and_blue(
    tmp_path: Path, mode: str, ending: str, options: dict[str, Any]
) -> None:
    smooth = np.linspace(0, 255, 12 * 16).reshape(12, 16).astype(np.uint8)
    gray = Image.fromarray(smooth)
    image = Image.fromarray(smooth.astype(np.uint16) * 257) if mode == "I;16" else gray.convert(mode)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        image.save(tmp_path / label / f"x.{ending}", **options)
    opened = read_images(tmp_path).open(0)
    assert (opened.mode, opened.size) == ("RGB", (16, 12))
    if mode != "1":
        np.testing.assert_allclose(np.asarray(opened, int)[:, :, 1], smooth, atol=0 if ending == "png" else 12)


def test_white_is_behind_transparent_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((12, 16, 4), np.uint8)
    pixels[:, :8, 3] = 255
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.fromarray(pixels).save(tmp_path / label / "x.png")
    opened = np.asarray(read_images(tmp_path).open(0))
    assert (opened[:, :8] == 0).all()
    assert (opened[:, 8:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_images_are_turned_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"x.{ending}"
    stored = Image.fromarray(PIXELS)
    stored.save(file, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    turned = open_image(file)
    assert turned.size == ((16, 12) if orientation < 5 else (12, 16))
    with Image.open(file) as plain:
        from PIL import ImageOps

        np.testing.assert_array_equal(turned, ImageOps.exif_transpose(plain))
    np.testing.assert_array_equal(ImageOps.exif_transpose(turned), turned)  # not turned twice by those who come after


def test_long_images_of_few_pixels_are_read(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (40_000, 10)).save(tmp_path / label / "x.png")
    assert read_images(tmp_path).size(0) == (10, 40_000)
