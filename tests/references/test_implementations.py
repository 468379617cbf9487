"""Every implementation that is installed, held to Google's records: all share no code with the converter's judge."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.inputs import batches
from convert.progress import silent
from convert.references.registry import REFERENCES
from convert.references.worker import ReferenceProcess
from convert.verification.results import ISOLATED
from convert.verification.verify import Verification, verify

Synthetic = Callable[[str], Path]
LARGE = ("R101x1", "R50x3", "R101x3", "R152x2", "R152x4")
RUNS = {
    "definition on the source float64",
    "definition float64",
    "definition float64, isolated",
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
"""Of a conversion from Google's npz to transformers."""


def fully_verified(source: Path, folder: Path) -> Verification:
    with Checkpoint(source) as checkpoint:
        return verify(folder, checkpoint, silent, tuple(REFERENCES))


def assert_all_agree(result: Verification) -> None:
    assert result.passed, [check for check in result.checks if not check.passed]
    assert {check.run for check in result.checks} == RUNS
    assert max(check.error for check in result.checks if check.dtype == "float64") < 1e-11
    assert all(item.top1 == item.top5 == item.images for item in result.trials.agreements)
    assert set(result.trials.not_run) == {"onnxruntime", "google/bit-50's published logits"}
    about = result.trials.ran["transformers float64"]
    assert (about["device"], about["TF32"]) == ("CPU", "off")
    assert not result.trials.findings


def test_what_a_reference_wrote_for_itself_goes_with_it(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Checkpoint(tiny_npz) as checkpoint, ReferenceProcess(REFERENCES["timm"], checkpoint) as process:
        process.load("float64")
        assert list(tmp_path.rglob("*.npy")), "what timm's own loader read"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "architecture", ["R14x1", "R50x1", *(pytest.param(architecture, marks=pytest.mark.long) for architecture in LARGE)]
)
def test_all_references_agree(synthetic: Synthetic, tmp_path: Path, architecture: str) -> None:
    source = synthetic(architecture)
    assert_all_agree(fully_verified(source, convert(source, "transformers", tmp_path / "out")))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_no_seed_gives_a_false_alarm(tmp_path: Path, seed: int) -> None:
    from bit.config import BitConfig
    from convert.sources.synthetic import write_npz

    write_npz(tmp_path / "seeded.npz", BitConfig.from_architecture("R50x1"), seed)
    result = fully_verified(tmp_path / "seeded.npz", convert(tmp_path / "seeded.npz", "timm", tmp_path / "out"))
    assert result.passed, [check for check in result.checks if not check.passed]


def test_timm_reads_its_own_layout_and_googles(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "timm", tmp_path / "out")
    with Checkpoint(synthetic("R14x1")) as source:
        result = verify(folder, source, silent, ("timm",))
    assert result.passed
    assert {check.side for check in result.checks if check.implementation == "timm"} == {"source", "written"}


def test_a_graph_is_run_part_by_part_too(synthetic: Synthetic, tmp_path: Path) -> None:
    folder = convert(synthetic("R14x1"), "onnx", tmp_path / "out")
    with Checkpoint(synthetic("R14x1")) as source:
        result = verify(folder, source, silent)
    assert result.passed
    assert any(check.implementation == "ONNX Runtime" for check in result.checks)


def test_teacher_forced_errors_of_an_unchanged_network_are_those_of_float64_itself(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    folder = convert(synthetic("R14x1"), "google", tmp_path / "out")
    with Checkpoint(synthetic("R14x1")) as source:
        result = verify(folder, source, silent, ("pytorch",))
    forced = [check for check in result.checks if check.mode == ISOLATED and check.implementation == "definition"]
    assert forced
    assert max(check.error for check in forced) < 1e-14


def test_a_reference_whose_process_dies_is_an_error_in_words(tiny_npz: Path) -> None:
    with Checkpoint(tiny_npz) as checkpoint, ReferenceProcess(REFERENCES["pytorch"], checkpoint) as process:
        implementation = process.load("float64")
        pid = process._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CheckpointError, match="pytorch could not be run: it ended with status -9"):
            list(implementation.run("root_block", batches()))


def test_a_reference_that_fails_says_why(tiny_npz: Path) -> None:
    with Checkpoint(tiny_npz) as checkpoint, ReferenceProcess(REFERENCES["pytorch"], checkpoint) as process:
        implementation = process.load("float64")
        with pytest.raises(CheckpointError, match=r"pytorch could not be run: .*channels"):
            list(implementation.run("root_block", batches(channels=5)))


def test_a_reference_that_is_not_installed_is_reported_as_not_run(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from convert.verification import network

    missing = dataclasses.replace(REFERENCES["flax"], needs=("no_such_package",))
    monkeypatch.setitem(network.REFERENCES, "flax", missing)
    folder = convert(tiny_npz, "timm", tmp_path / "out")
    with Checkpoint(tiny_npz) as source:
        result = verify(folder, source, silent, ("flax",))
    assert "no_such_package is not installed" in result.trials.not_run["flax"]
    assert result.passed, "what ran, passed"
