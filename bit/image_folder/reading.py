"""Find labelled images: in folders, in what the library `datasets` loads, and in scikit-learn's digits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from bit.files import short
from bit.image_folder.files import SUFFIXES
from bit.image_folder.labelled import LabelledImages, Listed, Progress
from bit.image_folder.sources import Arrays, Files
from bit.image_folder.tables import find_table, is_table, table_splits

DIGITS = "digits"
"""Name of scikit-learn's handwritten digits, which come with the package."""
SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "test", "eval")}
"""Both parts of a data set, and the names that they have in folders and tables, the first that exists counts."""


def read_images(
    data: str | Path,
    *,
    split: str | None = None,
    skip_bad: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> LabelledImages:
    """Read labelled images, and decode each once to see that it is intact.

    `data` is one of these:

    - a folder with a folder of images for each class (`DATA/CLASS/IMAGE`, JPEG, PNG, WebP, BMP, GIF), or with such
      folders for each split (`DATA/train/CLASS/IMAGE`, `DATA/val/CLASS/IMAGE`). Classes are in order of their names;
    - a name or path for the library `datasets`: a data set saved by `save_to_disk`, a parquet, CSV or JSON file, or
      a data set of the Hugging Face Hub. Columns are found by their types (`Image`, `ClassLabel`) or usual names;
    - `digits`: scikit-learn's 1,797 handwritten digits of 8×8 pixels, values from 0 to 16 scaled to 0 to 255.

    `split` is `train`, `val` or the name of a split. Without it the validation images are taken where there are
    splits, and all images where there are none. `train` and `val` of data without splits are those of `splits` with
    `seed`. `skip_bad` leaves out images that cannot be read, and lists them in `skipped`.

    Raises `ValueError`, in one line, for images of fewer than two classes, an image that cannot be read and data
    that cannot be found, and `OSError` for a file that cannot be opened.
    """
    if progress is not None:
        progress("reading images", 0, 0)
    found = _available(data)
    if found or split is None:
        name = _choose(data, found, split) if found else None
        return _list(data, name).checked(skip_bad, progress)
    if split not in SPLITS:
        raise ValueError(f"{data} has no splits, so there is no {short(split)}; choose train or val, or leave it out")
    both = split_by_class(_list(data, None).checked(skip_bad, progress), seed)
    return both[0] if split == "train" else both[1]


def splits(
    data: str | Path,
    *,
    skip_bad: bool = False,
    seed: int = 0,
    validation_share: float = 0.2,
    progress: Progress | None = None,
) -> tuple[LabelledImages, LabelledImages]:
    """Return training and validation images, with the same classes.

    These are the splits of `data` (see `read_images`) if it has both, else all its images, split by `split_by_class`.
    Raises the errors of `read_images`, and `ValueError` if the classes of both splits differ.
    """
    found = _available(data)
    names = [next((name for name in SPLITS[part] if name in found), None) for part in ("train", "val")]
    if None in names:
        name = _choose(data, found, "train") if found else None
        return split_by_class(_list(data, name).checked(skip_bad, progress), seed, validation_share)
    listed = [_list(data, name) for name in names]
    train, validation = (set(part.classes) for part in listed)
    if train != validation:
        places = {names[0]: sorted(train - validation), names[1]: sorted(validation - train)}
        only = [f"only {name} has {', '.join(extra[:5])}" for name, extra in places.items() if extra]
        raise ValueError(f"the splits of {data} have different classes ({'; '.join(only)}); give both the same folders")
    first, second = (part.reordered(listed[0].classes).checked(skip_bad, progress) for part in listed)
    return first, second


def split_by_class(
    images: LabelledImages, seed: int = 0, validation_share: float = 0.2
) -> tuple[LabelledImages, LabelledImages]:
    """Split images into training and validation, with the same share of each class.

    Each class is put into the order of SHA-256 over the seed and each image's name, so that the split is the same on
    every machine and for every version of every library. A class with one image is for training.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}; expected a number between 0 and 1")
    order = sorted(range(len(images)), key=lambda i: hashlib.sha256(f"{seed} {images.key(i)}".encode()).digest())
    chosen: set[int] = set()
    for label in set(images.labels):
        members = [index for index in order if images.labels[index] == label]
        count = max(1, round(validation_share * len(members)))
        chosen |= set(members[: min(count, len(members) - 1)])
    if not chosen:
        raise ValueError("every class has one image, so none is left for validation; add images")
    everything = range(len(images))
    return images.subset(i for i in everything if i not in chosen), images.subset(i for i in everything if i in chosen)


def _available(data: str | Path) -> list[str]:
    """Return the names of the splits in the data, or nothing if they are not divided."""
    path = Path(data).expanduser()
    if data == DIGITS and not path.exists():
        return []
    if is_table(data):
        return table_splits(str(data))
    known = {name for names in SPLITS.values() for name in names}
    folders = _folders(path)
    # A class may be called `train`: then the folder holds images, and no folders of them.
    divided = bool(folders) and all(folder.name in known and _folders(folder) for folder in folders)
    return [folder.name for folder in folders] if divided else []


def _choose(data: str | Path, found: list[str], split: str | None) -> str:
    """Return the split that is asked for; without that the validation images, or all there is."""
    wanted = SPLITS.get(split or "val", (split or "",))
    for name in (split, *wanted) if split in found else wanted:
        if name in found:
            return str(name)
    if split is None:
        return found[0]
    raise ValueError(f"{data} has no split {short(split)}; it has {', '.join(found)}")


def _list(data: str | Path, split: str | None) -> Listed:
    """Find the images of data, or of a split that is there."""
    path = Path(data).expanduser()
    if data == DIGITS and not path.exists():
        return _digits()
    if is_table(data):
        return find_table(str(data), split)
    return _list_folder(path / split if split else path)


def _list_folder(folder: Path) -> Listed:
    """Find the images of a folder with a folder for each class."""
    files: list[Path] = []
    labels: list[int] = []
    classes = _folders(folder)
    if loose := [file for file in _images(folder.iterdir()) if not file.name.startswith(".")]:
        raise ValueError(f"{loose[0]} is in no class; put each image into a folder of {folder} with its class's name")
    for label, place in enumerate(classes):
        found = _images(place.rglob("*"))
        if not found and any(_images(other.rglob("*")) for other in classes):
            raise ValueError(f"{place} holds no images ({', '.join(sorted(SUFFIXES))}); remove it, or add images")
        files += found
        labels += [label] * len(found)
    return Listed(str(folder), tuple(place.name for place in classes), tuple(labels), Files(folder, files))


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, in order, except hidden ones."""
    return sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith((".", "__")))


def _images(paths: object) -> list[Path]:
    """Return those of the paths that end as image files do, in an order that is the same on every machine."""
    found = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_dir()]  # type: ignore[attr-defined]
    return sorted(found, key=lambda path: path.parts)


def _digits() -> Listed:
    """Return scikit-learn's digits."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ValueError(f"{DIGITS} needs scikit-learn; type: pip install -e '.[finetune]'") from None
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Listed(DIGITS, tuple(map(str, digits.target_names)), tuple(map(int, digits.target)), Arrays(pixels))
