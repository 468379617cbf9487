"""Recording the outputs of a checkpoint, and comparing conversions with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import bit, run_here
from support.conversions import arrays_of, convert, verified
from support.networks import TINY
from support.recordings import float32_error

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError, UsageError
from convert.files.base import file_sha256
from convert.network.taps import tap_names
from convert.progress import silent
from convert.references.recorder import record
from convert.references.recordings import SHIPPED, Recordings, find_recordings
from convert.sources.synthetic import write_npz


def recorded(path: Path, folder: Path, frameworks: tuple[str, ...] = ()) -> Recordings:
    with Checkpoint(path) as checkpoint:
        record(checkpoint, folder, silent, frameworks)
    recordings = find_recordings(file_sha256(path), [folder])
    assert recordings is not None
    return recordings


@pytest.fixture(scope="module")
def recorded_tiny(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with recordings of `tiny_npz` by the oracle alone, not to be changed."""
    folder = tmp_path_factory.mktemp("recordings")
    recorded(tiny_npz, folder)
    return folder


def test_a_recording_holds_every_tap_of_both_runs(tiny_npz: Path, tmp_path: Path) -> None:
    recordings = recorded(tiny_npz, tmp_path, ("pytorch",))
    keys = {(name, tap) for name in ("square", "odd") for tap in tap_names(TINY)}
    assert set(recordings.float64.taps) == keys
    assert [run.implementation.split(" of ")[0] for run in recordings.float32] == ["bit (PyTorch)"]
    assert all(0 < float32_error(recordings, key) < 1e-4 for key in keys)
    about = recordings.float64.about
    assert about["sha256"] == file_sha256(tiny_npz)
    assert about["environment"]["version"] == f"NumPy {np.__version__}"
    assert sum(file.stat().st_size for file in (tmp_path / "tiny").iterdir()) < 300_000


def test_a_conversion_is_compared_with_a_recording_even_without_the_source(
    tiny_npz: Path, tmp_path: Path, recorded_tiny: Path
) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    result = verified(folder, None, ("pytorch",), recordings=(recorded_tiny,))
    assert result.passed
    assert {check.dtype for check in result.checks} == {"float64", "float32"}
    assert all("recorded outputs of oracle" in check.reference for check in result.checks)


def test_two_checkpoints_of_one_name_have_recordings_of_their_own(
    tiny_npz: Path, tmp_path: Path, recorded_tiny: Path
) -> None:
    recordings = shutil.copytree(recorded_tiny, tmp_path / "recordings")
    write_npz(tmp_path / "tiny.npz", TINY, seed=1)
    recorded(tmp_path / "tiny.npz", recordings)
    assert find_recordings(file_sha256(tiny_npz), [recordings]) is not None
    assert len(list(recordings.iterdir())) == 2
    recorded(tmp_path / "tiny.npz", recordings, ("pytorch",))
    assert len(list(recordings.iterdir())) == 2, "recorded anew in the same folder"


def test_outputs_of_the_original_code_are_never_replaced(synthetic: Callable[[str], Path], tmp_path: Path) -> None:
    with (
        Checkpoint(synthetic("R14x1")) as checkpoint,
        pytest.raises(CheckpointError, match="original code are recorded"),
    ):
        record(checkpoint, tmp_path, silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [SHIPPED, SHIPPED / "mine"])
def test_nothing_is_recorded_among_the_recordings_of_the_project(tiny_npz: Path, folder: Path) -> None:
    before = sorted(SHIPPED.rglob("*"))
    with Checkpoint(tiny_npz) as checkpoint, pytest.raises(UsageError, match="choose another"):
        record(checkpoint, folder, silent)
    assert sorted(SHIPPED.rglob("*")) == before


def test_a_converted_checkpoint_is_not_recorded(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    with Checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="was converted"):
        record(checkpoint, tmp_path / "recordings", silent)


def test_values_that_are_not_finite_are_not_recorded(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/head/conv2d/bias"][0] = np.nan
    np.savez(tmp_path / "tiny.npz", **arrays)
    with Checkpoint(tmp_path / "tiny.npz") as checkpoint, pytest.raises(CheckpointError, match="not finite"):
        record(checkpoint, tmp_path / "recordings", silent)
    assert not (tmp_path / "recordings" / "tiny").exists()


def test_a_damaged_recording_is_named(tiny_npz: Path, tmp_path: Path, recorded_tiny: Path) -> None:
    recordings = shutil.copytree(recorded_tiny, tmp_path / "recordings")
    (recordings / "tiny" / "oracle-f64.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        find_recordings(file_sha256(tiny_npz), [recordings])
    (recordings / "tiny" / "oracle-f64.safetensors").unlink()
    with pytest.raises(CheckpointError, match="0 runs in float64"):
        find_recordings(file_sha256(tiny_npz), [recordings])


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "tiny"}', '{"name": "tiny", "sha256": 1}'])
def test_a_damaged_description_of_a_checkpoint_is_named(
    tiny_npz: Path, tmp_path: Path, recorded_tiny: Path, content: str
) -> None:
    recordings = shutil.copytree(recorded_tiny, tmp_path / "recordings")
    (recordings / "tiny" / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"recordings in .*tiny are damaged .*remove them"):
        find_recordings(file_sha256(tiny_npz), [recordings])


@pytest.mark.parametrize("frameworks", [False, pytest.param(True, marks=pytest.mark.long)], ids=["alone", "added"])
def test_converting_records_into_the_cache_and_bit_record_adds_frameworks(
    frameworks: bool, tiny_npz: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_npz, tmp_path / "tiny.npz")
    cache = str(tmp_path / "cache")
    result = run_here("convert", "tiny.npz", "--json", cwd=tmp_path, BIT_CACHE=cache)
    assert result.returncode == 0, result.stderr
    assert "recorded outputs of oracle" in json.loads(result.stdout)["verification"]["reference"]
    assert {file.name for file in (tmp_path / "cache" / "recordings" / "tiny").iterdir()} == {
        "checkpoint.json",
        "oracle-f32.safetensors",
        "oracle-f64.safetensors",
    }
    assert not (tmp_path / "reference_outputs").exists()
    if frameworks:
        result = bit("record", "tiny.npz", cwd=tmp_path, BIT_CACHE=cache)
        assert result.returncode == 0, result.stderr
        assert "keras-f32, oracle-f64, pytorch-f32" in result.stdout
    (tmp_path / "tiny.npz").unlink()
    result = run_here("verify", "converted/tiny/transformers", "--quick", cwd=tmp_path, BIT_CACHE=cache)
    assert result.returncode == 0, result.stderr


def test_recordings_of_another_epsilon_are_not_used(tiny_npz: Path, recorded_tiny: Path) -> None:
    assert find_recordings(file_sha256(tiny_npz), [recorded_tiny], 1e-10) is not None
    assert find_recordings(file_sha256(tiny_npz), [recorded_tiny], 1e-8) is None
