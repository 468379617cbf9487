"""Every installed implementation, compared with Google's recordings; none shares code with the oracle."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.inputs import batches
from convert.network.taps import parts
from convert.references.registry import REFERENCES
from convert.references.worker import ReferenceProcess
from convert.sources.synthetic import write_npz
from convert.verification import network
from convert.verification.results import ISOLATED, Verification

Synthetic = Callable[[str], Path]
LARGE = ("R50x1", "R101x1", "R50x3", "R101x3", "R152x2", "R152x4")
RUNS = {
    "oracle on the source float64",
    "oracle float64",
    "oracle float64, isolated",
    "bit (PyTorch) float64",
    "bit (PyTorch) float64, isolated",
    "bit (PyTorch) float32",
    "bit.flax (JAX) on the source float64",
    "bit.flax (JAX) on the source float64, isolated",
    "bit.flax (JAX) on the source float32",
    "bit.keras (TensorFlow) on the source float32",
    "timm on the source float64",
    "timm on the source float64, isolated",
    "timm on the source float32",
    "transformers float64",
    "transformers float64, isolated",
    "transformers float32",
}
"""The runs of a conversion from Google's npz to transformers."""


def assert_all_agree(result: Verification) -> None:
    assert result.passed, [check for check in result.checks if not check.passed]
    assert {check.run for check in result.checks} == RUNS
    assert max(check.error for check in result.checks if check.dtype == "float64") < 1e-11
    assert all(item.top1 == item.top5 == item.images for item in result.network.agreements)
    assert set(result.network.not_run) == {"onnxruntime", "keras-saved"}
    about = result.network.environments["transformers float64"]
    assert (about["device"], about["TF32"]) == ("CPU", "off")
    assert not result.network.findings


@pytest.fixture(scope="module")
def tiny_graph(tiny_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX graph of `tiny_npz`; the process of ONNX Runtime starts faster than others."""
    return convert(tiny_npz, "onnx", tmp_path_factory.mktemp("graph") / "tiny")


@pytest.mark.parametrize(
    "architecture", ["R14x1", *(pytest.param(architecture, marks=pytest.mark.long) for architecture in LARGE)]
)
def test_all_references_agree(synthetic: Synthetic, tmp_path: Path, architecture: str) -> None:
    source = synthetic(architecture)
    assert_all_agree(verified(convert(source, "transformers", tmp_path / "out"), source, tuple(REFERENCES)))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_no_seed_gives_a_false_alarm(tmp_path: Path, seed: int) -> None:
    source = tmp_path / "seeded.npz"
    write_npz(source, BitConfig.from_architecture("R50x1"), seed)
    result = verified(convert(source, "timm", tmp_path / "out"), source, tuple(REFERENCES))
    assert result.passed, [check for check in result.checks if not check.passed]


def test_timm_reads_the_layouts_of_timm_and_google(tiny_npz: Path, tmp_path: Path) -> None:
    result = verified(convert(tiny_npz, "timm", tmp_path / "out"), tiny_npz, ("timm",))
    assert result.passed
    assert {check.side for check in result.checks if check.implementation == "timm"} == {"source", "converted"}


def test_a_graph_runs_part_by_part(tiny_npz: Path, tiny_graph: Path) -> None:
    result = verified(tiny_graph, tiny_npz)
    assert result.passed
    assert any(check.implementation == "ONNX Runtime" for check in result.checks)


def test_isolated_errors_of_an_unchanged_network_are_rounding(tiny_npz: Path, tmp_path: Path) -> None:
    result = verified(convert(tiny_npz, "google", tmp_path / "out"), tiny_npz, ("pytorch",))
    isolated = [check for check in result.checks if check.mode == ISOLATED and check.implementation == "oracle"]
    assert isolated
    assert max(check.error for check in isolated) < 1e-14


@pytest.mark.long
def test_temporary_files_of_a_reference_go_with_its_process(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Checkpoint(tiny_npz) as checkpoint, ReferenceProcess(REFERENCES["timm"], checkpoint) as process:
        process.load("float64")
        assert list(tmp_path.rglob("*.npy")), "the parameters that timm's own loader reads"
    assert list(tmp_path.iterdir()) == []


def test_a_reference_whose_process_is_killed_is_an_error_in_words(tiny_graph: Path) -> None:
    with Checkpoint(tiny_graph) as checkpoint, ReferenceProcess(REFERENCES["onnxruntime"], checkpoint) as process:
        implementation = process.load("float32")
        os.kill(process.identifier, signal.SIGKILL)
        with pytest.raises(CheckpointError, match="onnxruntime could not be run: it was killed by SIGKILL"):
            implementation.run(parts(checkpoint.config)[0], batches())


def test_a_reference_that_fails_gives_the_reason(tiny_graph: Path) -> None:
    with Checkpoint(tiny_graph) as checkpoint, ReferenceProcess(REFERENCES["onnxruntime"], checkpoint) as process:
        implementation = process.load("float32")
        with pytest.raises(CheckpointError, match=r"onnxruntime could not be run: .*Got: 5 Expected: 3"):
            implementation.run(parts(checkpoint.config)[0], batches(channels=5))


def test_a_reference_process_leaves_the_environment_as_it_was(tiny_graph: Path) -> None:
    before = dict(os.environ)
    with Checkpoint(tiny_graph) as checkpoint, ReferenceProcess(REFERENCES["onnxruntime"], checkpoint):
        assert dict(os.environ) == before


def test_a_reference_that_is_not_installed_is_reported_as_not_run(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = dataclasses.replace(REFERENCES["flax"], needs=("no_such_package",))
    monkeypatch.setitem(network.REFERENCES, "flax", missing)
    result = verified(convert(tiny_npz, "timm", tmp_path / "out"), tiny_npz, ("flax",))
    assert "no_such_package is not installed" in result.network.not_run["flax"]
    assert result.passed, "the other runs passed"
