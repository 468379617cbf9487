"""Downloads in processes that are killed, run side by side, or find a damaged part."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bucket import Bucket, Fault, serving

from convert.errors import DownloadError
from convert.progress import silent
from convert.sources import download as policy
from convert.sources.download import download
from convert.sources.remote import info_path

PROGRAM = """
import sys
from pathlib import Path
from convert.sources.download import download

download(sys.argv[1], Path(sys.argv[2]), lambda what, done, total: print(what, done, total, flush=True))
"""

KILLED_BEFORE_STEP = """
import itertools, os, signal, sys

steps = itertools.count()

def kill(event, arguments):
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and "{folder}" in str(arguments[0]):
        if next(steps) == {step}:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
"""


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving(Bucket()) as bucket:
        yield bucket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.npz"


def process(bucket: Bucket, path: Path, before: str = "") -> subprocess.Popen[str]:
    """Start a process that downloads and prints the progress."""
    arguments = [sys.executable, "-c", before + PROGRAM, f"{bucket.address}/a.npz", str(path)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def until_there_is(path: Path, least: int, child: subprocess.Popen[str]) -> None:
    """Wait until the child has that many bytes; it must not end without them."""
    while not (part_of(path).exists() and part_of(path).stat().st_size >= least):
        assert child.poll() in (None, 0), child.communicate()
        if path.exists():
            return
        time.sleep(0.001)


def finish(bucket: Bucket, path: Path) -> None:
    """Download in this process; check that the result is right and nothing else is left."""
    download(f"{bucket.address}/a.npz", path, silent)
    assert path.read_bytes() == bucket.content
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.npz", "a.npz.download.json"]


@pytest.mark.parametrize("runs", [6, pytest.param(20, marks=pytest.mark.long)])
def test_the_next_process_resumes_after_a_kill_at_any_moment(bucket: Bucket, tmp_path: Path, runs: int) -> None:
    bucket.pause = 0.004  # more than 0.1 seconds in all
    moments, sizes = random.Random(1), []
    for run in range(runs):
        path = tmp_path / str(run) / "a.npz"
        bucket.requests.clear()
        child = process(bucket, path)
        until_there_is(path, 1, child)
        time.sleep(moments.uniform(0, 0.13))
        child.kill()
        child.communicate()
        sizes.append(part_of(path).stat().st_size if part_of(path).exists() else len(bucket.content))
        finish(bucket, path)
        rest = [] if sizes[-1] == len(bucket.content) else [f"bytes={sizes[-1]}-"]
        assert bucket.ranges == [None, *rest]
    assert len(set(sizes)) > runs // 4, "the moments should differ"


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.long)])
def test_the_next_process_resumes_after_a_kill_before_any_step_on_the_disk(
    bucket: Bucket, tmp_path: Path, stride: int
) -> None:
    for step in range(0, 60, stride):
        path = tmp_path / str(step) / "a.npz"
        child = process(bucket, path, KILLED_BEFORE_STEP.format(folder=path.parent, step=step))
        _, errors = child.communicate()
        finish(bucket, path)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL, errors
    assert 5 < step < 55, "there are some steps, and an end of them"


def test_one_file_arrives_through_many_kills(bucket: Bucket, path: Path) -> None:
    places = sorted(random.Random(2).sample(range(1, len(bucket.content)), 5))
    for place in places:
        bucket.faults = [Fault(stall=place)]
        child = process(bucket, path)
        until_there_is(path, place, child)
        child.kill()
        child.communicate()
    finish(bucket, path)
    assert bucket.ranges == [None, *(f"bytes={place}-" for place in places)]


def test_only_one_of_two_processes_downloads(bucket: Bucket, path: Path) -> None:
    bucket.pause = 0.01
    children = [process(bucket, path) for _ in range(2)]
    printed = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], printed
    assert bucket.ranges == [None]
    finish(bucket, path)


def test_a_waiting_process_resumes_where_a_killed_one_was(bucket: Bucket, path: Path) -> None:
    bucket.faults = [Fault(stall=1000)]
    first = process(bucket, path)
    until_there_is(path, 1, first)
    second = process(bucket, path)
    assert second.stdout is not None
    assert second.stdout.readline() == "waiting for another process that fetches a.npz 0 0\n"
    first.kill()
    first.communicate()
    assert second.communicate()[1] == ""
    assert bucket.ranges == [None, "bytes=1000-"]
    finish(bucket, path)


def test_a_full_disk_is_an_error_and_the_next_process_resumes(bucket: Bucket, path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    _, errors = process(bucket, path, limit).communicate()
    assert f"File too large: '{part_of(path)}'" in errors
    finish(bucket, path)
    assert bucket.ranges == [None, "bytes=50000-"]


def half(bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the first 100000 bytes, as a failed download does."""
    bucket.faults = [Fault(cut=100_000), Fault(status=401)]
    with monkeypatch.context() as patch, pytest.raises(DownloadError, match="resumes at byte 100000"):
        patch.setattr(policy, "BACKOFF", 0.01)
        download(f"{bucket.address}/a.npz", path, silent)
    bucket.requests.clear()


def change_info(path: Path, **values: object) -> None:
    file = info_path(path)
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def flip(path: Path) -> None:
    content = bytearray(part_of(path).read_bytes())
    content[500] ^= 1
    part_of(path).write_bytes(content)


def append(path: Path, count: int) -> None:
    with open(part_of(path), "ab") as file:
        file.write(bytes(count))


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str | None]]] = {
    "none": (lambda path: None, ["bytes=100000-"]),
    "a shorter part": (lambda path: part_of(path).write_bytes(part_of(path).read_bytes()[:-1]), ["bytes=99999-"]),
    "a part with another byte": (flip, ["bytes=100000-", None]),
    "a part with zeros behind": (lambda path: append(path, 10), ["bytes=100010-", None]),
    "a part longer than the file": (lambda path: append(path, 200_000), [None]),
    "an empty part": (lambda path: part_of(path).write_bytes(b""), [None]),
    "no part": (lambda path: part_of(path).unlink(), [None]),
    "no info file": (lambda path: info_path(path).unlink(), [None]),
    "an info file cut short": (lambda path: info_path(path).write_text("{"), [None]),
    "an info file of something else": (lambda path: info_path(path).write_text('{"a": 1}'), [None]),
    "an info file that is a list": (lambda path: info_path(path).write_text("[]"), [None]),
    "an info file that is not text": (lambda path: info_path(path).write_bytes(b"\xff\x00"), [None]),
    "an info file without an address": (lambda path: change_info(path, url=None), [None]),
    "an info file of another address": (lambda path: change_info(path, url="http://elsewhere.invalid/a.npz"), [None]),
    "a generation that is a number": (lambda path: change_info(path, generation=1), [None]),
    "a generation with a line feed": (lambda path: change_info(path, generation="1\nHost: b"), [None]),
    "another generation": (lambda path: change_info(path, generation="7"), ["bytes=100000-", None]),
    "no generation": (lambda path: change_info(path, generation=None), ["bytes=100000-"]),
    "another size": (lambda path: change_info(path, size=150_000), ["bytes=100000-", None]),
    "another hash": (lambda path: change_info(path, md5="AAAA"), ["bytes=100000-", None]),
}
"""Damage to the files that a download left, and the ranges that the next one asks for."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_file_arrives_intact_whatever_happened_to_the_part(
    bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    half(bucket, path, monkeypatch)
    change, ranges = DAMAGE[damage]
    change(path)
    finish(bucket, path)
    assert bucket.ranges == ranges


def test_a_complete_part_needs_no_server(bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half(bucket, path, monkeypatch)
    part_of(path).write_bytes(bucket.content)
    finish(bucket, path)
    assert bucket.ranges == []


def test_an_unreachable_mirror_does_not_delete_the_part(
    bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(bucket, path, monkeypatch)
    monkeypatch.setattr(policy, "UNREACHED_PATIENCE", 0.0)
    with pytest.raises(DownloadError, match="cannot be reached"):
        download("http://127.0.0.1:9/a.npz", path, silent)
    finish(bucket, path)
    assert bucket.ranges == ["bytes=100000-"]


def test_a_lock_file_that_a_killed_process_left_beside_a_complete_file_is_removed(bucket: Bucket, path: Path) -> None:
    finish(bucket, path)
    path.with_name("a.npz.lock").touch()
    finish(bucket, path)
    assert bucket.ranges == [None]


def test_a_file_fetched_by_hand_takes_precedence_over_a_part(
    bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(bucket, path, monkeypatch)
    path.write_bytes(b"by hand")
    download(f"{bucket.address}/a.npz", path, silent)
    assert path.read_bytes() == b"by hand"
    assert bucket.ranges == []
