"""Every stored file is read or refused as it must be, in seconds; a campaign of minutes finds nothing new."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from fuzzing import mutators, seeds
from fuzzing.readers import CORPUS, READERS, Finding, Reader, Workplace, attempt, corpus
from fuzzing.worker import smaller

from convert.errors import CheckpointError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("fuzzing"))


@pytest.mark.parametrize("name", READERS)
def test_a_reader_accepts_the_files_to_start_from(name: str, place: Workplace) -> None:
    files = READERS[name].seeds(place)
    assert files
    for data in files.values():
        READERS[name].read(place, data)


@pytest.mark.parametrize("name", READERS)
def test_no_stored_file_is_a_finding(name: str, place: Workplace) -> None:
    files = corpus(name)
    assert files
    for file, data in files.items():
        assert attempt(READERS[name], place, data) is None, file


@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_no_findings(name: str, place: Workplace) -> None:
    """A few seconds of what a campaign does for hours, without the guidance of coverage."""
    reader, rng = READERS[name], random.Random(7)
    files = [*reader.seeds(place).values()]
    for _ in range(40 if reader.entry is None else 4):
        assert attempt(reader, place, reader.mutate(rng.choice(files), rng, lambda part: blindly(part, rng))) is None


def test_every_folder_of_the_corpus_has_a_reader() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(READERS)


def blindly(data: bytes, rng: random.Random) -> bytes:
    """Change, insert or remove a byte, as libFuzzer does."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((b"", b"\0", b"\xff", b"7")) + data[at + rng.choice((0, 1, 1)) :]


def answering(error: BaseException | None) -> Reader:
    def read(place: Workplace, data: bytes) -> None:
        if error is not None:
            raise error

    return Reader(read, lambda place: {"a": b"a"}, mutators.plain)


@pytest.mark.parametrize(
    "error", [KeyError("a"), RecursionError(), MemoryError(), UnicodeDecodeError("a", b"", 0, 1, "")]
)
def test_an_error_outside_the_tree_is_a_finding(error: Exception, place: Workplace) -> None:
    found = attempt(answering(error), place, b"a")
    assert found is not None
    assert found.kind == type(error).__name__
    assert "in read" in found.where


@pytest.mark.parametrize("message", ["two\nlines", "an \x1b[2J escape", "long" * 1000])
def test_a_message_that_is_not_a_short_line_is_a_finding(message: str, place: Workplace) -> None:
    found = attempt(answering(CheckpointError(message)), place, b"a")
    assert found is not None
    assert found.kind == "message"


@pytest.mark.parametrize("error", [None, CheckpointError("no"), FileNotFoundError("no")])
def test_an_error_of_the_tree_is_none(error: Exception | None, place: Workplace) -> None:
    assert attempt(answering(error), place, b"a") is None


@pytest.mark.parametrize("limit", ["MAX_SECONDS", "MAX_MEGABYTES"])
def test_too_much_time_or_memory_is_a_finding(limit: str, place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"fuzzing.readers.{limit}", -1)
    assert attempt(answering(None), place, b"a") is not None


def test_findings_in_the_same_place_have_one_name() -> None:
    assert Finding("KeyError", "a.py:1 in f", "x").name == Finding("KeyError", "a.py:1 in f", "y").name
    assert Finding("KeyError", "a.py:1 in f", "x").name != Finding("KeyError", "a.py:2 in f", "x").name
    assert Finding("time", "11 s", "").name == Finding("time", "12 s", "").name


def test_an_input_is_made_as_small_as_the_finding_allows() -> None:
    assert smaller(b"x" * 100 + b"ab" + b"y" * 100, lambda data: b"ab" in data) == b"ab"


@pytest.mark.parametrize("name", ["npz", "pytorch"])
def test_changed_archives_keep_their_checksums(name: str, place: Workplace) -> None:
    data, rng = READERS[name].seeds(place)[f"part{'-savez.npz' if name == 'npz' else '.pth'}"], random.Random(3)
    intact = 0
    for _ in range(50):
        with zipfile.ZipFile(io.BytesIO(READERS[name].mutate(data, rng, lambda part: part))) as archive:
            intact += archive.testzip() is None
    assert intact == 50


def test_the_checksum_of_hdf5_is_that_of_the_library(place: Workplace) -> None:
    data = seeds.h5("latest")(place)["part.h5"]
    assert mutators.h5(data, random.Random(0), lambda part: part) == data
    name = data.index(b"norm1")

    def renamed(part: bytes) -> bytes:
        return part[:name] + b"norm9" + part[name + 5 :]

    with h5py.File(io.BytesIO(mutators.h5(data, random.Random(0), renamed))) as file:
        assert np.array(file["stages/0/blocks/0/norm9/weight"]).sum() == 15


@pytest.mark.parametrize("name", READERS)
def test_a_mutator_repeats_itself(name: str, place: Workplace) -> None:
    for data in READERS[name].seeds(place).values():
        first, second = (READERS[name].mutate(data, random.Random(5), lambda part: part + b"a") for _ in range(2))
        assert first == second


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_a_campaign_finds_nothing(name: str, tmp_path: Path) -> None:
    result = campaign("--reader", name, "--seconds", "30", "--keep", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.long
def test_a_campaign_finds_a_planted_fault_and_keeps_it(tmp_path: Path) -> None:
    result = campaign("--table", "fuzzing.planted:READERS", "--seconds", "20", "--keep", tmp_path)
    assert result.returncode == 1, result.stderr
    assert "ZeroDivisionError" in result.stdout
    (found,) = (path for path in tmp_path.glob("planted/findings/*") if path.suffix != ".txt")
    assert json.loads(found.read_bytes())["width"] == 0
    assert "ZeroDivisionError" in found.with_suffix(".txt").read_text()


def campaign(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("atheris")
    return subprocess.run(
        [sys.executable, "-m", "fuzzing.run", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
    )
