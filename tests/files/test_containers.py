"""Only regular files are opened, and names from files are shown escaped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import assert_refused, run_here

from convert.errors import CheckpointError
from convert.files.base import TensorFile, file_sha256, shown
from convert.files.containers import kind, open_weights


@pytest.mark.parametrize("read", [open_weights, kind, file_sha256, TensorFile])
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(CheckpointError, match=r"a\.npz is not a regular file"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("path", [Path("/dev/zero"), Path("/dev/tty0")])
def test_a_device_is_refused(path: Path) -> None:
    if path.exists():
        with pytest.raises(CheckpointError, match="is not a regular file"):
            open_weights(path)


def test_a_pipe_in_a_folder_of_weights_is_passed_over(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3, np.float32))
    os.mkfifo(tmp_path / "b.npz")
    with open_weights(tmp_path) as file:
        assert file.path == tmp_path / "a.npz"


def test_the_command_refuses_a_pipe_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    assert_refused(run_here("convert", "a.npz", cwd=tmp_path), "a.npz is not a regular file", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("block1/unit01", "block1/unit01"),
        ("é", "é"),
        ("\x1b[2J\n", r"\x1b[2J\n"),
        ("\u202e", r"\u202e"),
        ("\ud800", r"\ud800"),
        ("a" * 200, "a" * 99 + "…"),
        ("a" * 10_000_000 + "\n", "a" * 99 + "…"),
    ],
)
def test_text_from_files_is_shown_in_one_bounded_line(text: str, expected: str) -> None:
    assert shown(text) == expected
