"""Recording what a checkpoint computes, and holding conversions to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command import bit
from support.conversions import arrays_of, convert
from support.networks import TINY

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.files.base import file_sha256
from convert.network.taps import tap_names
from convert.progress import silent
from convert.references.recorder import record
from convert.references.recordings import Recordings, find
from convert.sources.synthetic import write_npz
from convert.verification.verify import verify


def recorded(path: Path, folder: Path, frameworks: tuple[str, ...] = ()) -> Recordings:
    with Checkpoint(path) as checkpoint:
        record(checkpoint, folder, silent, frameworks)
    records = find(file_sha256(path), [folder])
    assert records is not None
    return records


def test_a_record_holds_every_tap_of_both_runs(tiny_npz: Path, tmp_path: Path) -> None:
    records = recorded(tiny_npz, tmp_path, ("pytorch",))
    keys = {(name, tap) for name in ("square", "odd") for tap in tap_names(TINY)}
    assert set(records.truth.taps) == keys
    assert [run.implementation.split(" of ")[0] for run in records.float32] == ["bit (PyTorch)"]
    assert all(0 < records.float32_error(key) < 1e-4 for key in keys)
    about = records.truth.about
    assert about["sha256"] == file_sha256(tiny_npz)
    assert about["environment"]["version"] == f"NumPy {np.__version__}"
    assert sum(file.stat().st_size for file in (tmp_path / "tiny").iterdir()) < 300_000


def test_a_conversion_is_held_to_what_was_recorded_even_without_its_source(tiny_npz: Path, tmp_path: Path) -> None:
    recorded(tiny_npz, tmp_path / "records")
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    result = verify(folder, None, silent, ("pytorch",), records=(tmp_path / "records",))
    assert result.passed
    assert {check.dtype for check in result.checks} == {"float64", "float32"}
    assert all("recorded outputs of definition" in check.reference for check in result.checks)


def test_two_checkpoints_of_one_name_have_records_of_their_own(tiny_npz: Path, tmp_path: Path) -> None:
    recorded(tiny_npz, tmp_path / "records")
    write_npz(tmp_path / "tiny.npz", TINY, seed=1)
    recorded(tmp_path / "tiny.npz", tmp_path / "records")
    assert find(file_sha256(tiny_npz), [tmp_path / "records"]) is not None
    assert len(list((tmp_path / "records").iterdir())) == 2
    recorded(tmp_path / "tiny.npz", tmp_path / "records", ("pytorch",))
    assert len(list((tmp_path / "records").iterdir())) == 2, "recorded anew in its place"


def test_outputs_of_the_original_code_are_never_replaced(synthetic: Callable[[str], Path], tmp_path: Path) -> None:
    with (
        Checkpoint(synthetic("R14x1")) as checkpoint,
        pytest.raises(CheckpointError, match="original code are recorded"),
    ):
        record(checkpoint, tmp_path, silent)
    assert not list(tmp_path.iterdir())


def test_a_converted_checkpoint_is_not_recorded(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    with Checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="was converted"):
        record(checkpoint, tmp_path / "records", silent)


def test_values_that_are_not_finite_are_not_recorded(tmp_path: Path) -> None:
    arrays = arrays_of(TINY)
    arrays["resnet/head/conv2d/bias"][0] = np.nan
    np.savez(tmp_path / "tiny.npz", **arrays)
    with Checkpoint(tmp_path / "tiny.npz") as checkpoint, pytest.raises(CheckpointError, match="not finite"):
        record(checkpoint, tmp_path / "records", silent)
    assert not (tmp_path / "records" / "tiny").exists()


def test_a_damaged_record_is_named(tiny_npz: Path, tmp_path: Path) -> None:
    recorded(tiny_npz, tmp_path)
    (tmp_path / "tiny" / "definition-f64.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        find(file_sha256(tiny_npz), [tmp_path])
    (tmp_path / "tiny" / "definition-f64.safetensors").unlink()
    with pytest.raises(CheckpointError, match="0 runs in float64"):
        find(file_sha256(tiny_npz), [tmp_path])


def test_converting_records_by_itself_and_bit_record_adds_frameworks(tiny_npz: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_npz, tmp_path / "tiny.npz")
    result = bit("convert", "tiny.npz", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "recorded outputs of definition" in json.loads(result.stdout)["verification"]["reference"]
    assert {file.name for file in (tmp_path / "reference_outputs" / "tiny").iterdir()} == {
        "checkpoint.json",
        "definition-f32.safetensors",
        "definition-f64.safetensors",
    }
    result = bit("record", "tiny.npz", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "definition-f64, keras-f32, pytorch-f32" in result.stdout
    (tmp_path / "tiny.npz").unlink()
    result = bit("verify", "converted/tiny/transformers", "--quick", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_records_of_another_epsilon_are_not_used(tiny_npz: Path, tmp_path: Path) -> None:
    recorded(tiny_npz, tmp_path)
    assert find(file_sha256(tiny_npz), [tmp_path], 1e-10) is not None
    assert find(file_sha256(tiny_npz), [tmp_path], 1e-8) is None
