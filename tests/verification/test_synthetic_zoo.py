"""The published architectures, converted and compared with the outputs of Google's own code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.conversions import convert, verified

from bit.config import BitConfig
from convert.sources.synthetic import write_npz

# The kernel's own high-water mark; `ru_maxrss` would count from the memory of the parent.
PEAK_MEMORY = """
from convert.cli import main
try: main()
finally: print(*[line for line in open("/proc/self/status") if line.startswith("VmHWM")])
"""
LARGE = ("R101x3", "R152x2", "R152x4")


@pytest.mark.parametrize(
    "architecture",
    [
        "R14x1",
        *(pytest.param(architecture, marks=pytest.mark.long) for architecture in ("R50x1", "R101x1", "R50x3", *LARGE)),
    ],
)
def test_it_converts_and_verifies(synthetic: Callable[[str], Path], tmp_path: Path, architecture: str) -> None:
    source = synthetic(architecture)
    folder = convert(source, "transformers", tmp_path / "out")
    result = verified(folder, source, ("pytorch",) if architecture == "R50x1" else ())
    assert result.passed
    assert result.tensors_exact == 9 * sum(BitConfig.from_architecture(architecture).depths) + 9
    assert max(check.error for check in result.checks if check.dtype == "float64") < 1e-11
    assert result.warnings == ()


@pytest.mark.long
@pytest.mark.parametrize("architecture", LARGE)
def test_the_model_in_pytorch_computes_the_same(
    synthetic: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    folder = convert(synthetic(architecture), "transformers", tmp_path / "out")
    result = verified(folder, None, ("pytorch",))
    assert result.passed
    assert {(check.implementation, check.dtype) for check in result.checks} == {
        ("oracle", "float64"),
        ("bit (PyTorch)", "float64"),
        ("bit (PyTorch)", "float32"),
    }


@pytest.mark.long
def test_the_largest_checkpoint_converts_in_little_memory(tmp_path: Path) -> None:
    config = BitConfig.from_architecture("R152x4", num_labels=21843)
    write_npz(tmp_path / "a.npz", config)
    command = [sys.executable, "-c", PEAK_MEMORY, "convert", "a.npz", "--out", "out", "--no-verify"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-2]) < 400 * 1024
