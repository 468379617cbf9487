from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command import assert_refused, run_here
from support.conversions import arrays_of, convert
from support.networks import TINY

from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.options import ConversionOptions
from convert.errors import CheckpointError
from convert.layouts import READABLE
from convert.progress import silent
from convert.sources.synthetic import write_npz
from convert.verification.comparison import compare
from convert.verification.results import Difference

STEM = "resnet/root_block/standardized_conv2d/kernel"


def compared(first: Path, second: Path, taps: bool = True) -> Difference:
    with Checkpoint(first) as one, Checkpoint(second) as other:
        return compare(one, other, silent, taps)


def changed(folder: Path, key: str, factor: float) -> Path:
    arrays = arrays_of(TINY)
    arrays[key] = arrays[key] * np.float32(factor)
    np.savez(folder / "changed.npz", **arrays)
    return folder / "changed.npz"


@pytest.mark.parametrize("layout", list(READABLE))
def test_a_conversion_is_equal_to_its_source(tiny_npz: Path, tmp_path: Path, layout: str) -> None:
    found = compared(tiny_npz, convert(tiny_npz, layout, tmp_path / "out"))
    assert found.equal
    assert {tensor.status for tensor in found.tensors} == {"identical" if layout == "google" else "equal"}
    assert max(tap.relative_l2 or 0 for tap in found.taps) < 1e-14


def test_a_tensor_that_differs_is_named_with_the_effect_on_the_taps(tiny_npz: Path, tmp_path: Path) -> None:
    key = "resnet/block1/unit02/b/group_norm/gamma"
    found = compared(tiny_npz, changed(tmp_path, key, 1.5))
    (tensor,) = (tensor for tensor in found.tensors if tensor.status == "different")
    assert tensor.parameter == "block1/unit02/norm2/scale"
    assert tensor.relative_l2 == pytest.approx(0.5)
    assert tensor.largest == pytest.approx(0.5 * np.abs(arrays_of(TINY)[key]).max())
    first = next(tap.tap for tap in found.taps if not tap.alike)
    assert first == "block1/unit02", "taps before the tensor are the same"


def test_a_scaled_kernel_differs_in_the_tensor_and_hardly_in_the_taps(tiny_npz: Path, tmp_path: Path) -> None:
    found = compared(tiny_npz, changed(tmp_path, STEM, 2.0))
    assert [tensor.relative_l2 for tensor in found.tensors if tensor.status == "different"] == [pytest.approx(1.0)]
    assert 0 < max(tap.relative_l2 or 0 for tap in found.taps) < 1e-4


def test_compensated_weights_differ_and_compute_the_same(tiny_npz: Path, tmp_path: Path) -> None:
    options = ConversionOptions(dtype="float64", ws_eps="compensate")
    found = compared(tiny_npz, convert(tiny_npz, "timm", tmp_path / "out", options=options))
    assert sum(tensor.status == "different" for tensor in found.tensors) == 12
    assert max(tap.relative_l2 or 0 for tap in found.taps) < 1e-12


def test_networks_with_different_heads_are_compared_without_them(tiny_npz: Path, tmp_path: Path) -> None:
    for options, status in (
        (ConversionOptions(head="drop"), "missing"),
        (ConversionOptions(head="new:3"), "different"),
    ):
        found = compared(tiny_npz, convert(tiny_npz, "timm", tmp_path / status, options=options))
        assert not found.equal
        assert {tensor.status for tensor in found.tensors if tensor.parameter.startswith("head/")} == {status}
        assert all(tap.alike for tap in found.taps)
        assert "logits" not in {tap.tap for tap in found.taps}


def test_values_that_are_not_finite_are_not_comparable_and_never_equal(tiny_npz: Path, tmp_path: Path) -> None:
    found = compared(tiny_npz, changed(tmp_path, STEM, float("nan")))
    assert not found.equal
    assert found.tensors[0].relative_l2 is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_networks_of_different_sizes_are_refused(tiny_npz: Path, tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", TINY.replace(depths=(1, 1)))
    with pytest.raises(CheckpointError, match="cannot be compared"):
        compared(tiny_npz, tmp_path / "a.npz")


def test_the_exit_status_tells_whether_they_are_equal(tiny_npz: Path, tmp_path: Path) -> None:
    folder = convert(tiny_npz, "timm", tmp_path / "timm")
    same = run_here("compare", tiny_npz, folder, cwd=tmp_path)
    assert (same.returncode, same.stdout.splitlines()[-1]) == (0, "equal"), same.stderr
    other = run_here("compare", tiny_npz, changed(tmp_path, STEM, 2.0), "--no-taps", cwd=tmp_path)
    assert other.returncode == 1, other.stderr
    assert "stem/kernel" in other.stdout
    assert "33 identical, 1 different" in other.stdout
    values = json.loads(run_here("compare", tiny_npz, folder, "--json", cwd=tmp_path).stdout)
    assert values["equal"] is True
    assert_refused(
        run_here("compare", tiny_npz, "nothing.npz", cwd=tmp_path), "there is no file 'nothing.npz'", tmp_path
    )
