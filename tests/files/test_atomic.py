"""Files and folders that are complete or absent, whatever ends the process."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from convert.errors import CheckpointError
from convert.files.atomic import HeldFolder, NewFolder, new_file


def foreign(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {"a", "b"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def two_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot exchange two folders."""
    monkeypatch.setattr("convert.files.atomic._exchange", lambda one, other: False)


def test_a_folder_appears_complete_on_commit(tmp_path: Path) -> None:
    with NewFolder(tmp_path / "deep" / "out", foreign) as folder:
        (folder.path / "a").write_text("new")
        assert not (tmp_path / "deep" / "out").exists()
        folder.commit()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "new"
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), NewFolder(tmp_path / "deep" / "out", foreign) as folder:
        (folder.path / "a").write_text("new")
        raise error
    assert names(tmp_path) == [], "not even the folders above it"


def test_an_existing_output_is_kept_without_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    (tmp_path / "out" / "b").write_text("old")
    with pytest.raises(CheckpointError, match="--force"):
        NewFolder(tmp_path / "out", foreign)
    with NewFolder(tmp_path / "out", foreign, force=True) as folder:
        (folder.path / "a").write_text("new")
        folder.commit()
    assert names(tmp_path / "out") == ["a"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("content", ["new", None])
def test_without_an_exchange_a_folder_is_replaced_by_two_renames(
    tmp_path: Path, two_renames: None, content: str | None
) -> None:
    for text in ("old", content):
        with NewFolder(tmp_path / "out", foreign, force=True) as folder:
            (folder.path / "a").write_text(text or "")
            if text is not None:
                folder.commit()
    assert (tmp_path / "out" / "a").read_text() == (content or "old")
    assert names(tmp_path) == ["out"]


def test_a_file_that_somebody_adds_during_a_conversion_keeps_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(CheckpointError, match="files that are not part of a conversion"),
        NewFolder(tmp_path / "out", foreign, force=True) as folder,
    ):
        (tmp_path / "out" / "thesis.tex").write_text("precious")
        folder.commit()
    assert names(tmp_path / "out") == ["thesis.tex"]


REPLACE = """
import os, signal, sys
from pathlib import Path
from convert.files.atomic import NewFolder

steps = int(sys.argv[2])


def end(event, arguments):
    global steps
    if event == "open" or event.startswith(("os.", "ctypes.", "fcntl.", "shutil.")):
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(end)
with NewFolder(Path(sys.argv[1]), lambda folder: [], force=True) as folder:
    for number in range(20):
        (folder.path / str(number)).write_text("new")
    folder.commit()
"""
KILLS = 100
"""The run makes about 120 calls: some write and flush the new folder, half remove the old one."""


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.long)], ids=["a-sample", "each"])
def test_killed_before_any_call_the_target_is_the_old_or_the_new_folder_whole(tmp_path: Path, every: int) -> None:
    found = []
    for steps in range(10, 10 + KILLS, every):
        target = tmp_path / str(steps) / "out"
        target.mkdir(parents=True)
        for number in range(60):
            (target / str(number)).write_text("old")
        killed = subprocess.run([sys.executable, "-c", REPLACE, str(target), str(steps)])
        assert killed.returncode == -signal.SIGKILL
        for _ in range(2):  # as it was left, and after the next run has cleaned up
            content = [path.read_text() for path in target.iterdir()]
            assert content in (["old"] * 60, ["new"] * 20), steps
            with NewFolder(target, lambda folder: [], force=True):
                pass
        assert names(target.parent) == ["out"]
        found.append(content[0])
    assert found == sorted(found, reverse=True)
    assert {*found} == {"old", "new"}


def test_many_runs_that_write_the_same_folder_at_once_all_succeed(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from convert.files.atomic import NewFolder\n"
        "for number in range(100):\n"
        "    with NewFolder(Path(sys.argv[1]), lambda folder: [], force=True) as folder:\n"
        "        (folder.path / 'a').write_text('a'); (folder.path / 'b').write_text('b'); folder.commit()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "deep" / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.communicate()[1] for process in processes] == [""] * 6
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["a", "b"]


def test_a_failure_keeps_the_folder_that_was_about_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"), NewFolder(tmp_path / "out", foreign, force=True):
        raise ValueError("stop")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_a_folder_with_foreign_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="holds files that are not part of a conversion"):
        NewFolder(tmp_path / "out", foreign, force=True)


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(CheckpointError, match="is not a folder"):
        NewFolder(tmp_path / "out", foreign, force=True)


def test_the_next_run_removes_the_workplace_of_a_killed_run_but_not_of_a_living_one(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from convert.files.atomic import NewFolder\n"
        "with NewFolder(Path(sys.argv[1]), lambda folder: []) as folder:\n"
        "    (folder.path / 'a').write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    assert len(names(tmp_path)) == 2
    dead, alive = processes
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    with NewFolder(tmp_path / "out", foreign) as folder:
        assert len(names(tmp_path)) == 2, "the dead one's folder is gone, the living one's is there"
        folder.commit()
    alive.kill()
    alive.communicate()
    assert "out" in names(tmp_path)


@pytest.mark.parametrize("error", [OSError, SystemExit, KeyboardInterrupt])
def test_the_old_folder_comes_back_when_the_last_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_renames: None, error: type[BaseException]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    rename, calls = Path.rename, iter((False, True, False))

    def failing(self: Path, target: Path) -> Path:
        if next(calls):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error), NewFolder(tmp_path / "out", foreign, force=True) as folder:
        (folder.path / "a").write_text("new")
        folder.commit()
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_folder_moved_by_a_run_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-dead" / "out.replaced").mkdir(parents=True)
    (tmp_path / ".out.partial-dead" / "out.replaced" / "a").write_text("old")
    (tmp_path / ".out.partial-dead" / "out").mkdir()
    with NewFolder(tmp_path / "out", foreign):
        assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("names_left", [["out.replaced"], ["out"], ["out.replaced", "out.lock"], ["out", "out.lock"]])
def test_what_is_being_discarded_is_never_restored(tmp_path: Path, names_left: list[str]) -> None:
    """The new folder had the target's name already, and somebody has removed it since."""
    dead = tmp_path / ".out.partial-dead"
    for name in names_left:
        (dead / name).mkdir(parents=True) if name != "out.lock" else (dead / name).touch()
    (dead / names_left[0] / "b").write_text("half of the old one")
    with NewFolder(tmp_path / "out", foreign):
        assert not (tmp_path / "out").exists()
    assert names(tmp_path) == []


def test_folders_and_files_that_only_look_like_a_workplace_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-mine").mkdir()
    (tmp_path / ".out.partial-mine" / "thesis.tex").write_text("precious")
    (tmp_path / ".out.partial-file").write_text("precious")
    with NewFolder(tmp_path / "out", foreign) as folder:
        folder.commit()
    assert names(tmp_path) == [".out.partial-file", ".out.partial-mine", "out"]


def test_an_interruption_right_after_the_first_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_renames: None
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    rename, calls = Path.rename, iter((True, False))

    def interrupted(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if next(calls):
            raise SystemExit
        return result

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit), NewFolder(tmp_path / "out", foreign, force=True) as folder:
        (folder.path / "a").write_text("new")
        folder.commit()
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["replaced", "out.replaced"])
def test_a_target_may_be_named_like_a_part_of_the_workplace(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="stop"), NewFolder(tmp_path / name, foreign):
        raise ValueError("stop")
    assert names(tmp_path) == [], "what was not committed never takes the target's name"
    for content in ("old", "new"):
        with NewFolder(tmp_path / name, foreign, force=True) as folder:
            (folder.path / "a").write_text(content)
            folder.commit()
    assert (tmp_path / name / "a").read_text() == "new"


def test_a_workplace_is_removed_even_if_the_name_holds_a_glob_pattern(tmp_path: Path) -> None:
    (tmp_path / ".o[1].partial-dead").mkdir()
    with NewFolder(tmp_path / "o[1]", foreign) as folder:
        folder.commit()
    assert names(tmp_path) == ["o[1]"]


def test_a_workplace_that_another_run_locks_first_is_left_to_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes a new folder for a dead one if it comes before the lock."""
    mkdtemp, created, handles = tempfile.mkdtemp, [], []

    def locked_at_first(**options: Any) -> str:
        created.append(mkdtemp(**options))
        if len(created) == 1:
            handles.append(os.open(Path(created[0], "out.lock"), os.O_RDWR | os.O_CREAT))
            fcntl.flock(handles[0], fcntl.LOCK_EX)
        return created[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", locked_at_first)
    with NewFolder(tmp_path / "out", foreign) as folder:
        folder.commit()
    assert len(created) == 2
    assert names(tmp_path) == [Path(created[0]).name, "out"]
    os.close(handles[0])


def test_a_held_folder_is_told_from_the_one_that_replaces_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with HeldFolder(tmp_path / "out") as held:
        held.check()
        with NewFolder(tmp_path / "out", foreign, force=True) as folder:
            folder.commit()
            with new_file(held.place / "a") as partial:
                partial.write_text("about the old one")
        with pytest.raises(CheckpointError, match="out was replaced in the meantime"):
            held.check()
        (tmp_path / "out").rmdir()
        with pytest.raises(CheckpointError, match="out was replaced in the meantime"):
            held.check()
        with pytest.raises(FileNotFoundError), new_file(held.place / "a"):
            pass
    assert names(tmp_path) == [], "the file went into the old folder, and with it"


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), new_file(tmp_path / "a") as partial:
        partial.write_text("half")
        raise ValueError("stop")
    assert names(tmp_path) == []
    with new_file(tmp_path / "a") as partial:
        partial.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"


def test_everything_is_on_the_disk_before_the_folder_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".partial")[0])
        fsync(handle)

    def recorded_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    with NewFolder(tmp_path / "out", foreign) as folder:
        (folder.path / "a").write_text("a")
        folder.commit()
    assert events == ["a", "out", "rename", tmp_path.name]
