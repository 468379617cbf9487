"""The Python API where a folder is replaced, the disk is full, or a run was killed."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import convert
from convert import api


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_that_the_disk_has_no_space_for_leaves_the_old_conversion(
    tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file it is: those beside the weights, the weights, the manifest, or one of the report."""
    first = convert.convert(tiny_npz, out="out")
    (here / "out" / "verification.html").write_text("the old page")
    old = contents(here / "out")
    monkeypatch.setattr("convert.api.verify_conversion", lambda *arguments: first.verification)
    files: list[str] = []

    def limited(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            files.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
            if len(files) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", limited)
    failing, failed = 0, set[str]()
    convert.convert(tiny_npz, out="counted")
    calls = len(files)
    for number in range(1, calls + 1):
        failing = number
        files.clear()
        with pytest.raises((OSError, convert.CheckpointError), match="No space left on device"):
            convert.convert(tiny_npz, out="out", force=True)
        assert contents(here / "out") == old
        assert {path.name for path in here.iterdir()} == {"out", "counted"}
        failed.add(files[-1])
    assert failed == old.keys()
    failing = 0
    assert convert.convert(tiny_npz, out="out", force=True).verification.passed
    assert contents(here / "out") != old


def test_the_report_of_a_folder_that_was_replaced_does_not_reach_the_new_one(
    tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert.convert(tiny_npz, out="out").folder
    (folder / "config.json").write_text("{}")
    new: list[dict[str, bytes]] = []

    def verify_slowly(*arguments: Any) -> convert.Verification:
        result = verify(*arguments)
        if not new:
            new.append({})
            convert.convert(tiny_npz, out="out", force=True)
            new[0] = contents(folder)
        return result

    verify = api.verify_conversion
    monkeypatch.setattr("convert.verifying.verify_conversion", verify_slowly)
    with pytest.raises(convert.CheckpointError, match="out was replaced in the meantime"):
        convert.verify("out", full=False)
    assert contents(folder) == new[0]
    assert json.loads(new[0]["verification.json"])["passed"]


def test_what_a_killed_verification_left_is_no_foreign_file(tiny_npz: Path, here: Path) -> None:
    left = convert.convert(tiny_npz, out="out").folder / ".verification.html.partial-dead"
    left.mkdir()
    (left / "verification.html").write_text("half")
    assert convert.verify("out", full=False).passed
    assert not left.exists()
    left.mkdir()
    assert convert.convert(tiny_npz, out="out", force=True).created
    left.mkdir()
    (left / "thesis.tex").write_text("precious")
    with pytest.raises(convert.CheckpointError, match="holds files that are not part of a conversion"):
        convert.convert(tiny_npz, out="out", force=True)


def test_a_folder_that_cannot_be_written_to_is_verified_with_a_warning(
    tiny_npz: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert.convert(tiny_npz, out="out").folder
    old = contents(folder)

    def no_space(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", no_space)
    verification = convert.verify("out", full=False)
    assert verification.passed
    assert verification.warnings[-1] == "the report could not be written to out: No space left on device"
    assert contents(folder) == old
