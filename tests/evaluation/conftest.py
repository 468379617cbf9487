"""A small network as ONNX, with labels, and images of some of its classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.conversions import LABELS, convert, with_config
from support.pictures import save_classes


@pytest.fixture(scope="session")
def labelled(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_npz` for transformers, with a name for each class, not to be changed."""
    folder = convert(tiny_npz, "transformers", tmp_path_factory.mktemp("labelled") / "transformers")
    return with_config(folder, id2label={str(index): label for index, label in LABELS.items()})


@pytest.fixture(scope="session")
def graph(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as ONNX, not to be changed. ONNX Runtime starts in a second."""
    return convert(labelled, "onnx", tmp_path_factory.mktemp("graph") / "onnx")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three of the five classes."""
    return save_classes(tmp_path_factory.mktemp("pictures") / "data", ("newt", "cat", "dog"))
