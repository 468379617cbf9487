"""Shared conversions, and small inputs where nothing is recorded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert

Folder = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _small_inputs(small_inputs: None) -> None:
    """Run every network of these tests on small images."""


@pytest.fixture(scope="session")
def converted(synthetic: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return the conversion of Synthetic-R14x1 to a layout, not to be changed."""
    folder = tmp_path_factory.mktemp("converted")

    def path(layout: str) -> Path:
        target = folder / layout
        return target if target.exists() else convert(synthetic("R14x1"), layout, target)

    return path


@pytest.fixture
def copied(converted: Folder, tmp_path: Path) -> Folder:
    """Return a copy of the conversion of Synthetic-R14x1 to a layout."""
    return lambda layout: shutil.copytree(converted(layout), tmp_path / "copied" / layout)


@pytest.fixture(scope="session")
def right_tiny(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion of `tiny_npz` for transformers, not to be changed."""
    return convert(tiny_npz, "transformers", tmp_path_factory.mktemp("right") / "tiny")


@pytest.fixture
def tiny(right_tiny: Path, tmp_path: Path) -> Path:
    """A copy of a conversion of `tiny_npz` for transformers."""
    return shutil.copytree(right_tiny, tmp_path / "tiny")
