"""Processes of reference implementations: how they start, and how their ends are put into words.

A stand-in for a framework, a small module found before the installed one, crashes as a framework may.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.checkpoints.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.network.runner import run_part
from convert.network.taps import parts
from convert.references import worker
from convert.references.registry import REFERENCES
from convert.references.worker import MEMORY, ReferenceProcess, at_once, environment

ENDS = {
    "import os; os._exit(3)": "it ended with status 3",
    "import os; print('no such device', flush=True); os._exit(3)": r"it ended with status 3 \(no such device\)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "it was killed by SIGKILL, as the system does when",
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "it was killed by SIGSEGV",
    "raise MemoryError": "MemoryError: out of memory",
    "raise ImportError('no libtorch.so')": "ImportError: no libtorch.so",
    "raise SystemExit('no licence')": r"it ended with status 1 \(no licence\)",
}
"""The reasons that are given, by the content of a stand-in for PyTorch."""


@pytest.mark.parametrize("content", ENDS)
def test_the_end_of_a_process_is_put_into_words(
    content: str, tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        Checkpoint(tiny_npz) as checkpoint,
        ReferenceProcess(REFERENCES["pytorch"], checkpoint) as process,
        pytest.raises(CheckpointError, match=f"^pytorch could not be run: {ENDS[content]}") as raised,
    ):
        process.load("float64")
    assert raised.value.problems == (str(raised.value).removeprefix("pytorch could not be run: "),)


def test_a_module_in_the_current_folder_is_not_taken_for_a_framework(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torch.py").write_text("raise ImportError('the right one')")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "torch.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path / "here")
    with (
        Checkpoint(tiny_npz) as checkpoint,
        ReferenceProcess(REFERENCES["pytorch"], checkpoint) as process,
        pytest.raises(CheckpointError, match="the right one"),
    ):
        process.load("float64")


SCRIPT = """
import sys
import convert
with open("started", "a") as file:
    file.write("once\\n")
result = convert.convert(sys.argv[1], "timm", "out", references=["pytorch"])
print(result.verification.passed, convert.verify("out", references=["pytorch"]).passed)
"""


def test_a_script_without_a_main_guard_starts_once_and_verifies(tiny_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(tiny_npz)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "True True\n"
    assert (tmp_path / "started").read_text() == "once\n"


@pytest.mark.parametrize(
    ("processors", "memory", "expected"),
    [(1, 8, 1), (2, 8, 2), (16, 8, 5), (16, 2, 2), (2, 1.9, 1), (2, 0, 1)],
)
def test_as_many_run_side_by_side_as_processors_and_memory_allow(
    processors: int, memory: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "processors", lambda: processors)
    monkeypatch.setattr(worker, "_available", lambda: int(memory * MEMORY))
    assert at_once(5) == expected
    assert at_once(0) == 1


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux tells how much memory is free")
def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONTROL_GROUP", tmp_path)
    free = worker._available()
    assert free > 0
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert worker._available() > 5000
    (tmp_path / "memory.max").write_text("6000\n")
    assert worker._available() == 5000


def test_each_framework_is_told_the_number_of_threads(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS", "XLA_FLAGS")
    (tmp_path / "torch.py").write_text(f"import os; raise ImportError([os.environ[name] for name in {names}])")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=there")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    expected = r"\['1', '1', '1', '--xla_dump_to=there --xla_cpu_multi_thread_eigen=false'\]"
    with (
        Checkpoint(tiny_npz) as checkpoint,
        ReferenceProcess(REFERENCES["pytorch"], checkpoint, threads=1) as process,
        pytest.raises(CheckpointError, match=expected),
    ):
        process.load("float64")


def test_only_small_networks_keep_freed_memory() -> None:
    small, large = (int(environment(1, count)["MALLOC_MMAP_THRESHOLD_"]) for count in (25_500_000, 937_000_000))
    assert small > 100 * large


def test_what_jax_compiles_is_kept_in_the_cache_folder_if_there_is_one(
    tiny_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in the way").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    kept = []
    for cache in (tmp_path / "cache", tmp_path / "cache", tmp_path / "in the way"):
        monkeypatch.setenv("BIT_CACHE", str(cache))
        with Checkpoint(tiny_npz) as checkpoint, ReferenceProcess(REFERENCES["flax"], checkpoint) as process:
            images = {"": np.zeros((1, 8, 8, 3), np.float32)}
            list(run_part(process.load("float32"), parts(checkpoint.config)[0], images))
        kept.append({path.name for path in cache.glob("jax/*/*-cache")})
    assert kept[0]
    assert kept == [kept[0], kept[0], set()]
