"""Downloads that end midway, in processes that are killed, run side by side, or find what is damaged."""

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

from convert.errors import CheckpointError
from convert.progress import silent
from convert.sources import download as policy
from convert.sources.download import download
from convert.sources.remote import record_path

PROGRAM = """
import sys
from pathlib import Path
from convert.download import download

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
    """A process that downloads; it prints its progress."""
    arguments = [sys.executable, "-c", before + PROGRAM, f"{bucket.address}/a.npz", str(path)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def until_there_is(path: Path, least: int, child: subprocess.Popen[str]) -> None:
    """Wait until the child has got that many bytes; it must not end without them."""
    while not (part_of(path).exists() and part_of(path).stat().st_size >= least):
        assert child.poll() in (None, 0), child.communicate()
        if path.exists():
            return
        time.sleep(0.001)


def finish(bucket: Bucket, path: Path) -> None:
    """Download in this process; the result is right, and nothing else is left."""
    download(f"{bucket.address}/a.npz", path, silent)
    assert path.read_bytes() == bucket.content
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.npz", "a.npz.download.json"]


def test_after_a_kill_at_any_moment_the_next_process_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    bucket.pause = 0.004  # more than 0.1 seconds in all
    moments, sizes = random.Random(1), []
    for run in range(20):
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
    assert len(set(sizes)) > 5, "the moments should differ"


def test_after_a_kill_before_any_step_on_the_disk_the_next_process_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    for step in range(40):
        path = tmp_path / str(step) / "a.npz"
        child = process(bucket, path, KILLED_BEFORE_STEP.format(folder=path.parent, step=step))
        _, errors = child.communicate()
        finish(bucket, path)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL, errors
    assert 5 < step < 39, "there are some steps, and an end of them"


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


def test_of_two_processes_one_downloads(bucket: Bucket, path: Path) -> None:
    bucket.pause = 0.01
    children = [process(bucket, path) for _ in range(2)]
    printed = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], printed
    assert bucket.ranges == [None]
    finish(bucket, path)


def test_who_waits_goes_on_where_a_killed_process_was(bucket: Bucket, path: Path) -> None:
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


def test_a_disk_that_fills_up_is_told_and_what_is_there_is_gone_on_from(bucket: Bucket, path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    _, errors = process(bucket, path, limit).communicate()
    assert f"File too large: '{part_of(path)}'" in errors
    finish(bucket, path)
    assert bucket.ranges == [None, "bytes=50000-"]


def half(bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the first 100000 bytes there, as a download that failed does."""
    bucket.faults = [Fault(cut=100_000), Fault(status=401)]
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="goes on from byte 100000"):
        patch.setattr(policy, "BACKOFF", 0.01)
        download(f"{bucket.address}/a.npz", path, silent)
    bucket.requests.clear()


def record(path: Path, **values: object) -> None:
    file = record_path(path)
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
    "no record": (lambda path: record_path(path).unlink(), [None]),
    "a record cut short": (lambda path: record_path(path).write_text("{"), [None]),
    "a record of something else": (lambda path: record_path(path).write_text('{"a": 1}'), [None]),
    "a record that is a list": (lambda path: record_path(path).write_text("[]"), [None]),
    "a record that is no text": (lambda path: record_path(path).write_bytes(b"\xff\x00"), [None]),
    "a record without an address": (lambda path: record(path, url=None), [None]),
    "a record of another address": (lambda path: record(path, url="http://elsewhere.invalid/a.npz"), [None]),
    "a generation that is a number": (lambda path: record(path, generation=1), [None]),
    "a generation with a line feed": (lambda path: record(path, generation="1\nHost: b"), [None]),
    "another generation": (lambda path: record(path, generation="7"), ["bytes=100000-", None]),
    "no generation": (lambda path: record(path, generation=None), ["bytes=100000-"]),
    "another size": (lambda path: record(path, size=150_000), ["bytes=100000-", None]),
    "another hash": (lambda path: record(path, md5="AAAA"), ["bytes=100000-", None]),
}
"""What is done to what a download left, and which ranges the next one asks for."""


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_became_of_a_part_the_file_arrives_right(
    bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    half(bucket, path, monkeypatch)
    change, ranges = DAMAGE[damage]
    change(path)
    finish(bucket, path)
    assert bucket.ranges == ranges


def test_a_part_that_is_whole_needs_no_server(bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half(bucket, path, monkeypatch)
    part_of(path).write_bytes(bucket.content)
    finish(bucket, path)
    assert bucket.ranges == []


def test_a_mirror_that_is_away_does_not_cost_what_is_there(
    bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(bucket, path, monkeypatch)
    monkeypatch.setattr(policy, "UNREACHED_PATIENCE", 0.0)
    with pytest.raises(CheckpointError, match="cannot be reached"):
        download("http://127.0.0.1:9/a.npz", path, silent)
    finish(bucket, path)
    assert bucket.ranges == ["bytes=100000-"]


def test_a_part_does_not_stand_in_the_way_of_a_file_fetched_by_hand(
    bucket: Bucket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half(bucket, path, monkeypatch)
    path.write_bytes(b"by hand")
    download(f"{bucket.address}/a.npz", path, silent)
    assert path.read_bytes() == b"by hand"
    assert bucket.ranges == []
