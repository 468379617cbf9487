"""Classify image files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from bit.files import check_regular, one_line
from bit.image_processing import PREPROCESSOR_NAME, BitImageProcessorPil
from bit.model import BitForImageClassification

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Pillow's names of the formats that are read. Others are refused: each decoder is one more that hostile files can
attack, and that of EPS starts a program, Ghostscript."""
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
"""Endings of the files in a folder that are taken for images."""
MAX_PIXELS = 25_000_000
"""Most pixels of an image file, as cameras of 24 megapixels make them: Pillow and NumPy take up to 24 bytes for each,
0.6 GB, for the copies that they make."""
MAX_FILE_BYTES = 4 * MAX_PIXELS
"""Largest image file: that of the largest image without compression."""


@dataclass(frozen=True)
class Prediction:
    """A class and how probable it is."""

    label: str
    """The name of the class, or the index as text if the classes have no names."""
    index: int
    probability: float
    """In [0, 1]: a softmax over all classes, or a sigmoid of this class alone if several may hold
    (`multi_label_classification`)."""


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files, and every image file in the folders. Raises `ValueError` for a folder without images."""
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
        files += found
    return files


def open_image(file: Path) -> Image.Image:
    """Return the first frame of an image file of `FORMATS`.

    Raises `OSError` for a file that cannot be opened, and `ValueError`, in one line that names the
    file, for a file that is not an intact image of at most `MAX_PIXELS` and `MAX_FILE_BYTES`.
    """
    if check_regular(file).stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB; make the image smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on metadata, and Pillow's own limit of pixels, which is higher
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width}×{image.height} pixels are too many")
                image.load()
                return image
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # Pillow's decoders raise errors of every kind for damaged files
        raise ValueError(
            f"{file} cannot be read as an image ({one_line(error)}); use a JPEG, PNG, WebP, BMP or GIF file of at "
            f"most {MAX_PIXELS // 10**6} megapixels"
        ) from None


def classify(
    files: Sequence[Path], folder: Path, top: int = 5, progress: Callable[[str, int, int], None] | None = None
) -> Iterator[tuple[Path, list[Prediction]]]:
    """Yield each file with the `top` most probable classes, most probable first.

    `folder` holds the model. Images are prepared as `preprocessor_config.json` says, or as Google
    evaluates if there is no such file. Raises `ValueError` for a file that is not an image or that
    the model cannot run on, and the errors of `from_pretrained`.
    """
    model = BitForImageClassification.from_pretrained(folder).for_inference()
    if not model.config.num_labels:
        raise ValueError(f"{folder} has no head, so it cannot classify; convert it with --head new:N and train it")
    kind = BitImageProcessorPil
    processor = kind.from_pretrained(folder) if (folder / PREPROCESSOR_NAME).exists() else kind.from_profile("google")
    labels, several = model.config.id2label, model.config.problem_type == "multi_label_classification"
    dtype = next(model.parameters()).dtype
    for number, file in enumerate(files):
        image: Image.Image | None = open_image(file)
        try:
            pixels = processor(image, return_tensors="pt")["pixel_values"]
            image = None  # frees it before the network runs
            with torch.inference_mode():
                logits: torch.Tensor = model(pixels.to(dtype)).logits[0].double()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{file} cannot be classified ({one_line(error)})") from None
        if not logits.isfinite().all():
            raise ValueError(f"{file} cannot be classified: the outputs of {folder} are not finite numbers")
        probabilities, indices = (logits.sigmoid() if several else logits.softmax(0)).topk(min(top, len(logits)))
        if progress is not None:
            progress("classifying", number + 1, len(files))
        found = zip(indices.tolist(), probabilities.tolist(), strict=True)
        yield file, [Prediction(labels[index] if labels else str(index), index, value) for index, value in found]
