"""Classify image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from bit.files import one_line
from bit.image_folder.files import open_image
from bit.image_processing import PREPROCESSOR_NAME, BitImageProcessorPil
from bit.model import BitForImageClassification


@dataclass(frozen=True)
class Prediction:
    """A class and how probable it is."""

    label: str
    """The name of the class, or the index as text if the classes have no names."""
    index: int
    probability: float
    """In [0, 1]: a softmax over all classes, or a sigmoid of this class alone if several may hold
    (`multi_label_classification`)."""


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
