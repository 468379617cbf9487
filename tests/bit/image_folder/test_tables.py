from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.odd import assert_one_line

from bit.image_folder import read_images, splits

datasets = pytest.importorskip("datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 9, 3), dtype=np.uint8)
LABELS = [0, 1, 1, 0, 1, 0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def table(**columns: Any) -> Any:
    """Return a table with images and labels under the names that `datasets` has for them, and other columns."""
    kinds = {"photo": datasets.Image(), "animal": datasets.ClassLabel(names=["dog", "cat"])}
    values = {"photo": [Image.fromarray(pixels) for pixels in PIXELS], "animal": LABELS, **columns}
    return datasets.Dataset.from_dict(values, datasets.Features({k: v for k, v in kinds.items() if k in values}))


def test_columns_are_found_by_their_types(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "saved")
    table().to_parquet(tmp_path / "rows.parquet")
    for place in (tmp_path / "saved", tmp_path / "rows.parquet"):
        images = read_images(place)
        assert (images.classes, images.labels) == (("dog", "cat"), tuple(LABELS))
        assert (images.name(3), images.size(3)) == ("row 3", (5, 9))
        np.testing.assert_array_equal(images.open(3), PIXELS[3])
        prints = images.fingerprint()
    assert prints == read_images(tmp_path / "saved").fingerprint()


def test_the_splits_of_a_table_are_used(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": table().select(range(4)), "test": table().select(range(2))})
    both.save_to_disk(tmp_path / "saved")
    assert [len(part) for part in splits(tmp_path / "saved")] == [4, 2]
    assert [len(read_images(tmp_path / "saved", split=split)) for split in (None, "train", "test")] == [2, 4, 2]


def test_both_splits_number_the_classes_in_the_same_order(tmp_path: Path) -> None:
    swapped = table().select(range(4)).cast_column("animal", datasets.ClassLabel(names=["cat", "dog"]))
    assert swapped.features["animal"].names == ["cat", "dog"]
    for name, part in (("train", table()), ("test", swapped)):
        part.to_parquet(tmp_path / name / f"{name}.parquet")
    monkey = {name: str(next((tmp_path / name).glob("*.parquet"))) for name in ("train", "test")}
    parts = datasets.DatasetDict({name: datasets.Dataset.from_parquet(path) for name, path in monkey.items()})
    parts.save_to_disk(tmp_path / "saved")
    train, validation = splits(tmp_path / "saved")
    assert train.classes == validation.classes == ("dog", "cat")
    assert (train.labels[:4], validation.labels) == ((0, 1, 1, 0), (1, 0, 0, 1))


def test_a_table_of_paths_and_names_is_read(tmp_path: Path) -> None:
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{'ab'[label]}" for number, label in enumerate(LABELS)]
    (tmp_path / "rows.csv").write_text("\n".join(["file_name,label", *rows]))
    images = read_images(tmp_path / "rows.csv")
    assert (images.classes, images.labels) == (("a", "b"), tuple(LABELS))
    np.testing.assert_array_equal(images.open(2), PIXELS[2])
    (tmp_path / "2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png cannot be read as an image"):
        read_images(tmp_path / "rows.csv")
    assert len(read_images(tmp_path / "rows.csv", skip_bad=True)) == 5


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().remove_columns("animal").to_parquet(tmp_path / "unlabelled.parquet")
    table(animal=[0, None, 1, 0, 1, 0]).to_parquet(tmp_path / "missing.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "notes.txt").write_text("not a table")
    (tmp_path / "saved").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for data, message in (
        (tmp_path / "unlabelled.parquet", r"has no column with labels .*its columns are photo"),
        (tmp_path / "missing.parquet", r"row 1 has no label \(-1\)"),
        (tmp_path / "damaged.parquet", "cannot be read by the library datasets"),
        (tmp_path / "notes.txt", "is neither a folder of images nor a table"),
        ("owner/absent", "'owner/absent' is neither a folder nor a data set"),
        ("./absent", "there is no folder './absent'"),
        ("saved/absent", "there is no folder 'saved/absent'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read_images(data)
        assert_one_line(caught.value)


def test_a_bad_image_in_a_table_is_named_by_its_row(tmp_path: Path) -> None:
    stored = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(stored, "PNG")
    content = [stored.getvalue()] * 6
    content[4] = content[4][:60]
    table(photo=[{"bytes": value, "path": None} for value in content]).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="row 4 cannot be read as an image"):
        read_images(tmp_path / "saved")
    assert read_images(tmp_path / "saved", skip_bad=True).labels == (0, 1, 1, 0, 0)
