"""Verified, different, or not completed: one verdict for every end that a reference implementation may come to.

A stand-in for a framework, a small module found before the installed one, fails as a framework may.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import run_here
from support.conversions import convert, verified

import convert as api
from convert.errors import IncompleteError, VerificationError
from convert.network.oracle import Oracle
from convert.network.runner import Implementation
from convert.progress import silent
from convert.publishing.gate import Gate, check_folder
from convert.references.worker import ReferenceProcess
from convert.reporting.text import summary, verdicts
from convert.verification import network
from convert.verification.results import DIFFERS, INCOMPLETE, VERIFIED

CRASHES = {
    "import os; os._exit(3)": "it ended with status 3",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": "it was killed by SIGKILL",
    "raise MemoryError": "MemoryError: out of memory",
    "raise ImportError('no libtorch.so')": "ImportError: no libtorch.so",
}
"""The reasons that are given, by the content of a stand-in for PyTorch."""
EXIT, KILLED = list(CRASHES)[:2]
INSTALL = "pip install -e '.[torch]'"


@pytest.fixture
def folder(tiny_npz: Path, tmp_path: Path) -> Path:
    """A conversion without a report; the folder above it holds the source."""
    return convert(tiny_npz, "timm", tmp_path / "out")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(content: str) -> None:
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "torch.py").write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    return put


@pytest.mark.parametrize("content", CRASHES)
def test_a_framework_that_crashes_is_named_with_the_reason_and_nothing_differs(
    content: str, folder: Path, tiny_npz: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in(content)
    result = verified(folder, tiny_npz, ("pytorch",))
    assert result.verdict == INCOMPLETE
    assert not result.passed
    assert result.problems == ()
    (reason,) = result.incomplete
    assert reason.startswith(f"pytorch failed: {CRASHES[content]}")
    assert INSTALL in reason
    assert result.checks, "what ran is kept"
    assert result.tensors_exact
    lines = [*summary(result), *verdicts(result)]
    assert sum(CRASHES[content] in line for line in lines) == 1
    assert lines[-1] == f"[bold yellow]{INCOMPLETE}[/]: nothing that was compared differs"


def test_a_framework_that_is_missing_matters_only_if_it_was_named(
    folder: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in network.REFERENCES:
        missing = dataclasses.replace(network.REFERENCES[name], needs=("no_such_package",))
        monkeypatch.setitem(network.REFERENCES, name, missing)
    assert verified(folder, tiny_npz, tuple(network.REFERENCES)).verdict == VERIFIED
    (folder / "verification.json").unlink()
    named = verified(folder, tiny_npz, ("pytorch",), required=("pytorch",))
    assert named.verdict == INCOMPLETE
    assert named.incomplete == (f"pytorch did not run: no_such_package is not installed: {INSTALL}",)
    assert sum("pytorch did not run: no_such_package is not installed" in line for line in summary(named)) == 1


def test_an_interrupt_ends_the_processes_of_all_references(
    folder: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "at_once", lambda count: 2)
    started, start = list[ReferenceProcess](), ReferenceProcess.__init__

    def noted(process: ReferenceProcess, *arguments: Any) -> None:
        start(process, *arguments)
        started.append(process)

    def interrupt(task: str, done: int, total: int) -> None:
        if task.startswith("comparing oracle"):
            while len(started) < 2:  # both threads have come so far
                time.sleep(0.01)
            raise KeyboardInterrupt

    monkeypatch.setattr(ReferenceProcess, "__init__", noted)
    with pytest.raises(KeyboardInterrupt):
        verified(folder, tiny_npz, ("pytorch", "flax", "timm"), progress=interrupt)
    for process in started:
        with pytest.raises(ProcessLookupError):
            os.kill(process.identifier, 0)


def test_a_process_that_is_killed_in_the_middle_leaves_what_it_had_computed(
    folder: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive, answers = ReferenceProcess.receive, list[None]()

    def killed(process: ReferenceProcess) -> Any:
        answers.append(None)
        if len(answers) == 10:
            os.kill(process.identifier, signal.SIGKILL)
        return receive(process)

    monkeypatch.setattr(ReferenceProcess, "receive", killed)
    result = verified(folder, tiny_npz, ("pytorch",))
    assert result.verdict == INCOMPLETE
    assert "killed by SIGKILL" in result.incomplete[0]
    computed = [check for check in result.checks if check.implementation == "bit (PyTorch)"]
    assert computed
    assert {check.dtype for check in computed} == {"float64"}
    assert all(check.passed for check in computed)


def test_a_difference_outweighs_a_crash(folder: Path, tiny_npz: Path, stand_in: Callable[[str], None]) -> None:
    (folder / "config.json").write_text("{}")
    stand_in(EXIT)
    result = verified(folder, tiny_npz, ("pytorch",))
    assert result.verdict == DIFFERS
    assert result.incomplete
    assert verdicts(result)[-1] == "[bold red]verification failed[/]"


def test_a_reference_that_differs_and_then_crashes_differs(
    folder: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pass, in isolation, ends the process."""
    receive, load = ReferenceProcess.receive, ReferenceProcess.load
    passes = list[ReferenceProcess]()

    def spoiled(process: ReferenceProcess) -> Any:
        answer = receive(process)
        if passes and isinstance(answer, dict):
            return {name: value * 1.5 for name, value in answer.items()}
        return answer

    def loaded(process: ReferenceProcess, dtype: str) -> Implementation:
        if passes:
            os.kill(process.identifier, signal.SIGKILL)
        implementation = load(process, dtype)
        passes.append(process)
        return implementation

    monkeypatch.setattr(ReferenceProcess, "receive", spoiled)
    monkeypatch.setattr(ReferenceProcess, "load", loaded)
    result = verified(folder, tiny_npz, ("pytorch",))
    assert result.network.crashed == ("pytorch",)
    assert result.verdict == DIFFERS


@pytest.mark.parametrize("failing", ["oracle", "reference"])
def test_memory_that_runs_out_here_is_no_difference(
    failing: str, folder: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    if failing == "oracle":
        monkeypatch.setattr(Oracle, "run", fail)
    else:
        monkeypatch.setattr(ReferenceProcess, "load", fail)
    result = verified(folder, tiny_npz, ("pytorch",))
    assert result.verdict == INCOMPLETE
    assert result.problems == ()
    assert result.tensors_exact, "the bytes were compared"


def test_a_report_of_a_pass_is_kept_until_a_verification_is_completed(
    folder: Path, tiny_npz: Path, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    assert run_here("verify", folder, "--source", tiny_npz, "--quick", cwd=tmp_path).returncode == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    stand_in(KILLED)
    options = ("verify", folder, "--source", tiny_npz, "--reference", "pytorch")
    result = run_here(*options, cwd=tmp_path)
    assert result.returncode == 3
    kept = f"warning: {folder / 'verification.json'} reports a pass and was kept: this verification {INCOMPLETE}"
    assert [line for line in result.stderr.splitlines() if line.startswith(kept)]
    assert "report: " not in result.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    written = run_here(*options, "--report", "new.json", cwd=tmp_path)
    assert written.returncode == 3
    assert "report: new.json" in written.stdout
    assert json.loads((tmp_path / "new.json").read_text())["verdict"] == INCOMPLETE
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "config.json").unlink()
    assert run_here(*options, cwd=tmp_path).returncode == 1
    assert json.loads((folder / "verification.json").read_text())["verdict"] == DIFFERS


def test_convert_and_verify_exit_with_0_1_or_3(tiny_npz: Path, tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = run_here(*arguments, "--json", cwd=tmp_path)
        return result.returncode, json.loads(result.stdout)["verdict"]

    assert run("convert", str(tiny_npz), "--out", "out") == (0, VERIFIED)
    assert run("verify", "out", "--quick") == (0, VERIFIED)
    stand_in(EXIT)
    assert run("convert", str(tiny_npz), "--out", "new", "--reference", "pytorch") == (3, INCOMPLETE)
    assert run("convert", str(tiny_npz), "--out", "out", "--reference", "pytorch") == (3, INCOMPLETE)
    assert run("verify", "out", "--reference", "pytorch") == (3, INCOMPLETE)
    assert json.loads((tmp_path / "new" / "verification.json").read_text())["verdict"] == INCOMPLETE
    assert json.loads((tmp_path / "out" / "verification.json").read_text())["verdict"] == VERIFIED
    (tmp_path / "out" / "config.json").write_text("{}")
    assert run("verify", "out", "--reference", "pytorch") == (1, DIFFERS)


def test_an_incomplete_conversion_replaces_nothing_and_has_an_error_of_its_own(
    tiny_npz: Path, tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    api.convert(tiny_npz, "timm", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    stand_in(EXIT)
    with pytest.raises(IncompleteError, match="could not be completed: pytorch failed: it ended with") as raised:
        api.convert(tiny_npz, "timm", tmp_path / "out", force=True, references=["pytorch"])
    assert not isinstance(raised.value, VerificationError)
    result = raised.value.result
    assert result.verification.verdict == INCOMPLETE
    assert result.verification.checks
    assert any("could not be completed, so" in warning for warning in result.warnings)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_gate_refuses_a_report_that_was_not_completed(
    folder: Path, tiny_npz: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(EXIT)
    result = verified(folder, tiny_npz, ("pytorch",))
    with pytest.raises(VerificationError, match="reports that it could not be completed"):
        check_folder(folder, silent)
    report = json.loads((folder / "verification.json").read_text())
    for changes in ({"passed": True, "model_passed": True, "verdict": VERIFIED}, {"incomplete": []}):
        report |= changes
        (folder / "verification.json").write_text(json.dumps(report))
        with pytest.raises(VerificationError, match="cannot be published"):
            check_folder(folder, silent)
    assert result.network.crashed, "which the last of them contradicts"


def test_a_repeated_verification_that_is_not_completed_is_no_difference(
    folder: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    assert verified(folder, tiny_npz).passed
    monkeypatch.setattr(Oracle, "run", fail)
    with pytest.raises(IncompleteError, match="could not be completed: the network was not run to the end"):
        check_folder(folder, silent, Gate(reverify=True, source=tiny_npz))


def test_memory_that_runs_out_anywhere_else_is_one_line_and_status_3(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 8 GiB")

    monkeypatch.setattr("convert.api.verify_found", fail)
    result = run_here("verify", folder, "--quick", cwd=tmp_path)
    assert result.returncode == 3
    assert result.stderr == "error: memory ran out (Unable to allocate 8 GiB); close other programs\n"
