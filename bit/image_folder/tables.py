"""Read labelled images through the library `datasets`, by a name or from a path."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bit.files import one_line
from bit.image_folder.labelled import Listed
from bit.image_folder.sources import Rows

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}
"""Names of the reader of `datasets` for each ending."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables with which the image folders of `datasets` describe the images beside them."""
SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files by which a data set that `save_to_disk` wrote is recognized."""
IMAGE_COLUMNS = ("image", "img", "images", "file_name", "filename", "file", "path")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target")
"""Names of columns, the usual ones first, for tables whose types leave a choice."""


def is_table(data: str | Path) -> bool:
    """Return whether data are for the library `datasets`: not a folder, or one that holds a table.

    Raises `ValueError` for a path that does not exist.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return bool(_saved(path) or _tables(path))
    if path.exists():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"{data} is neither a folder of images nor a table ({', '.join(READERS)})")
        return True
    # `data/photos` is a mistyped path if there is a folder `data`, and else a name as the Hub has them.
    of_hub = str(data).count("/") == 1 and not path.parent.is_dir()
    if isinstance(data, Path) or data.startswith((".", "/", "~")) or ("/" in data and not of_hub):
        raise ValueError(f"there is no folder {str(data)!r}; give a folder with a folder of images for each class")
    return True


def table_splits(data: str) -> list[str]:
    """Return the names of the splits of a data set, or nothing if it is one table."""
    loaded = _load(data)
    return list(loaded) if isinstance(loaded, dict) and len(loaded) > 1 else []


def find_table(data: str, split: str | None) -> Listed:
    """Find the images and labels of a data set, or of one of its splits.

    Raises `ValueError`, in one line, if it cannot be loaded or has no such columns.
    """
    loaded = _load(data)
    table = loaded if not isinstance(loaded, dict) else loaded[split or next(iter(loaded))]
    path = Path(data).expanduser()
    table, image = _image_column(data, table)
    classes, labels = _labels(data, table)
    folder = path.parent if path.is_file() else path if path.is_dir() else Path()
    return Listed(f"{data} ({split})" if split else data, classes, labels, Rows(table, image, folder))


def _saved(folder: Path) -> bool:
    return any((folder / name).exists() for name in SAVED)


def _tables(folder: Path) -> bool:
    """Return whether a folder holds tables and no folders, or images that a table describes."""
    places = list(folder.iterdir())
    if any(place.name in METADATA for place in places):
        return True
    return any(place.suffix.lower() in READERS for place in places) and not any(place.is_dir() for place in places)


def _load(data: str) -> Any:
    """Return a `Dataset`, or a `DatasetDict`, which is a dictionary. Raises `ValueError` in one line."""
    try:
        import datasets
    except ImportError:
        missing = f"there is no folder {data!r}" if not Path(data).expanduser().exists() else f"{data} is a table"
        raise ValueError(f"{missing}; to read data sets type: pip install -e '.[finetune]'") from None
    path = Path(data).expanduser()
    try:
        with _quiet():
            if path.is_file():
                return datasets.load_dataset(READERS[path.suffix.lower()], data_files=str(path))
            if path.is_dir() and _saved(path):
                return datasets.load_from_disk(str(path))
            return datasets.load_dataset(str(path) if path.is_dir() else data)
    except Exception as error:  # `datasets` raises errors of every kind for what it cannot find or read
        reason = f"{type(error).__name__}: {one_line(error)}"
        if path.exists():
            raise ValueError(f"{data} cannot be read by the library datasets ({reason})") from None
        raise ValueError(
            f"{data!r} is neither a folder nor a data set that the library datasets could load ({reason})"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from showing progress bars of its own, and a line for each attempt to reach the Hub."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            datasets.enable_progress_bars()


def _image_column(data: str, table: Any) -> tuple[Any, str]:
    """Return the table with images as bytes or paths, and the name of the column with images."""
    import datasets

    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:  # a CSV or JSON file has paths
        paths = [name for name, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
        images = [name for name in IMAGE_COLUMNS if name in paths][:1]
    name = _one(data, images, IMAGE_COLUMNS, "images (of the type Image)", features)
    return table.cast_column(name, datasets.Image(decode=False)), name


def _labels(data: str, table: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of the classes, and the class of each row; -1 where there is none."""
    import datasets

    features = table.features
    named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if named:
        name = _one(data, named, LABEL_COLUMNS, "labels (of the type ClassLabel)", features)
        return tuple(features[name].names), tuple(-1 if value is None else value for value in table[name])
    plain = [name for name in LABEL_COLUMNS if name in features]
    name = _one(data, plain[:1], LABEL_COLUMNS, "labels (of the type ClassLabel)", features)
    values = list(table[name])
    if not all(isinstance(value, str | int | None) for value in values):
        raise ValueError(f"the column {name!r} of {data} must hold names or numbers of classes")
    present = sorted({value for value in values if value is not None}, key=lambda v: (isinstance(v, str), v))
    index = {value: number for number, value in enumerate(present)}
    return tuple(map(str, present)), tuple(index.get(value, -1) for value in values)


def _one(data: str, found: list[str], usual: tuple[str, ...], kind: str, features: Any) -> str:
    """Return the only column found, or the one with the most usual name. Raises `ValueError`."""
    if len(found) == 1:
        return found[0]
    for name in usual:
        if name in found:
            return name
    problem = "several columns" if found else "no column"
    raise ValueError(f"{data} has {problem} with {kind}; its columns are {', '.join(features)}")
