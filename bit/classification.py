"""From image files to labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from bit.image_processing import PREPROCESSOR_NAME, BitImageProcessorPil
from bit.model import BitForImageClassification

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Prediction:
    label: str
    """The class's name, or its number where it has none."""
    index: int
    probability: float
    """Among all classes; of each class by itself where several may hold (`multi_label_classification`)."""


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and of folders every image in them. Raises `ValueError` for a folder without one."""
    files: list[Path] = []
    for path in paths:
        found = (
            sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if path.is_dir()
            else [path]
        )
        if not found:
            raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
        files += found
    return files


def classify(
    files: Sequence[Path], folder: Path, top: int = 5, progress: Callable[[str, int, int], None] | None = None
) -> Iterator[tuple[Path, list[Prediction]]]:
    """Yield each file with its `top` predictions, the most probable first.

    `folder` holds the model; images are prepared by its `preprocessor_config.json`, else as Google
    evaluates. Raises `ValueError` for a file that is no image, and what `from_pretrained` raises.
    """
    model = BitForImageClassification.from_pretrained(folder).for_inference()
    if not model.config.num_labels:
        raise ValueError(f"{folder} has no head, so it names no classes")
    stated = (folder / PREPROCESSOR_NAME).is_file()
    processor = BitImageProcessorPil.from_pretrained(folder) if stated else BitImageProcessorPil.from_profile("google")
    labels, several = model.config.id2label, model.config.problem_type == "multi_label_classification"
    dtype = next(model.parameters()).dtype
    for number, file in enumerate(files):
        try:
            with Image.open(file) as image:
                pixels = processor(image, return_tensors="pt")["pixel_values"]
        except (OSError, Image.DecompressionBombError, SyntaxError) as error:
            raise ValueError(f"{file} cannot be read as an image ({error})") from None
        with torch.inference_mode():
            logits = model.run(pixels.to(dtype)).logits[0].double()
        values, indices = (logits.sigmoid() if several else logits.softmax(0)).topk(min(top, len(logits)))
        if progress is not None:
            progress("classifying", number + 1, len(files))
        yield (
            file,
            [
                Prediction(labels[index] if labels else str(index), index, value)
                for index, value in zip(indices.tolist(), values.tolist(), strict=True)
            ],
        )
