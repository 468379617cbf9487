"""The command in a process of its own: imports, signals, streams, a full disk."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.command import BIT, assert_refused, bit

from bit.config import BitConfig
from convert.checkpoints.manifest import Manifest
from convert.files.base import file_sha256
from convert.sources.synthetic import write_npz

FRAMEWORKS = {"torch", "jax", "flax", "tensorflow", "keras", "timm", "transformers", "scipy"}


@pytest.mark.parametrize("arguments", [[], ["--no-verify"], ["--to", "google"]])
def test_no_framework_is_imported_even_to_verify(tiny_npz: Path, tmp_path: Path, arguments: list[str]) -> None:
    script = (
        "import sys; from convert.cli.main import main\n"
        "try: main()\n"
        f"finally: print('imported:', *({FRAMEWORKS!r} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, "convert", str(tiny_npz), "--out", "out", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "imported:"
    assert (tmp_path / "out").is_dir()


def test_the_command_imports_neither_numpy_nor_rich_before_it_needs_them() -> None:
    script = "import sys, convert.cli.main; print(*({'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_exit_statuses_tell_a_failed_verification_from_bad_input(tiny_npz: Path, tmp_path: Path) -> None:
    passed = bit("convert", tiny_npz, "--out", "out", cwd=tmp_path)
    assert passed.returncode == 0, passed.stderr
    assert "verified" in passed.stdout.splitlines()
    (tmp_path / "out" / "config.json").unlink()
    failed = bit("verify", "out", "--quick", "--json", cwd=tmp_path)
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["passed"] is False
    assert_refused(bit("verify", "nowhere", cwd=tmp_path), "there is no folder 'nowhere'", tmp_path)


def test_a_full_disk_is_one_error_line(tiny_npz: Path, tmp_path: Path) -> None:
    limit = tiny_npz.stat().st_size // 2048  # kibibytes: half of the file
    command = ["bash", "-c", f'ulimit -f {limit}; exec "$0" "$@"', BIT, "convert", tiny_npz]
    result = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert_refused(result, "File too large", tmp_path)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    write_npz(tmp_path / "a.npz", BitConfig.from_architecture("R26x1"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background hands on that it is ignored
    process = subprocess.Popen([str(BIT), "convert", "a.npz"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "converting …\n"
    process.send_signal(sent)
    process.communicate()
    assert process.returncode == 128 + sent
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("moment", ["ThreadPoolExecutor.submit", "Follower.advance"])
def test_a_signal_while_threads_follow_the_writing_ends_it(tiny_npz: Path, tmp_path: Path, moment: str) -> None:
    """The second call of a function sends the signal: one thread runs then, and waits for what will be written."""
    script = (
        "import itertools, os, signal; from concurrent.futures import ThreadPoolExecutor\n"
        "from convert.cli.main import main; from convert.files.hashing import Follower\n"
        f"calls, original = itertools.count(), {moment}\n"
        "def patched(self, work, *rest):\n"
        "    if 'Follower' in str(work) or isinstance(work, int):\n"
        "        if next(calls) == 1: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return original(self, work, *rest)\n"
        f"{moment} = patched; main()"
    )
    command = [sys.executable, "-c", script, "convert", str(tiny_npz), "--out", "out", "--no-verify"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.long)])
def test_killed_at_any_moment_it_leaves_the_old_or_the_new_conversion_whole(tmp_path: Path, kills: int) -> None:
    """Most of the time goes by before the first file is written, so the kills begin when the conversion does."""
    write_npz(tmp_path / "a.npz", BitConfig.from_architecture("R14x1", num_labels=10))
    out = tmp_path / "converted" / "a" / "transformers"
    dtypes = ("float32", "bfloat16")
    assert bit("convert", "a.npz", "--no-verify", cwd=tmp_path).returncode == 0
    for number, delay in enumerate(np.linspace(0, 0.25, kills)):
        command = [str(BIT), "convert", "a.npz", "--no-verify", "--force", "--dtype", dtypes[number % 2]]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        process.stderr.readline()
        time.sleep(float(delay))
        process.kill()
        process.communicate()
        manifest = Manifest.read(out)
        assert manifest is not None
        assert {path.name for path in out.iterdir()} == {*manifest.files, "conversion.json", "README.md"}
        assert all(file_sha256(out / name) == file.sha256 for name, file in manifest.files.items())
    assert bit("convert", "a.npz", "--force", cwd=tmp_path).returncode == 0
    assert [path.name for path in out.parent.iterdir()] == ["transformers"], "what was killed is cleaned up"


IN_A_SMALL_FILE_SYSTEM = """
set -e
mkdir small
mount -t tmpfs -o size=16m none small
cd small
"$1" convert "$2" --out out > /dev/null 2>&1
sha256sum out/* > ../before
for free in 100 570 590 4000; do
    rm -f filler
    available=$(df --output=avail --block-size=1K . | tail -1)
    head -c $(( (available - free) * 1024 )) /dev/zero > filler
    status=0
    "$1" convert "$2" --out out --force > /dev/null 2> ../errors || status=$?
    kept=replaced
    sha256sum --check --quiet ../before > /dev/null 2>&1 && kept=kept
    echo $status $kept $(grep -c ^error: ../errors) $(ls -A)
done
"""
"""The weights of the second conversion need 550 KiB, and the other files 60."""


def test_on_a_full_disk_nothing_is_replaced(tiny_npz: Path, tmp_path: Path) -> None:
    """The space ends with the weights, with the files beside them, or with the report."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small file system needs user namespaces")
    command = ["unshare", "-rm", "bash", "-c", IN_A_SMALL_FILE_SYSTEM, "bash", str(BIT), str(tiny_npz)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == lines[1] == "2 kept 1 filler out"
    assert lines[2] in ("2 kept 1 filler out", "0 replaced 0 filler out"), "the edge moves with the files' sizes"
    assert lines[3] == "0 replaced 0 filler out"


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tiny_npz: Path, tmp_path: Path) -> None:
    main, side = pty.openpty()
    command = [str(BIT), "convert", str(tiny_npz), "--no-verify"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=side, env={**os.environ, "TERM": "xterm", "COLUMNS": "80"})
    process.wait()
    os.close(side)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert "━" in shown
    assert "\x1b[" in shown
    plain = bit("convert", tiny_npz, "--no-verify", "--out", "out", cwd=tmp_path).stderr
    assert plain.splitlines()[0] == "converting …"
    assert "\x1b" not in plain


def test_a_reader_that_goes_away_changes_nothing(tiny_npz: Path, tmp_path: Path) -> None:
    for stream in ("2>&1 >/dev/null | true", "2>/dev/null | true", ">&-", "2>&-", ">/dev/full"):
        command = f'"{BIT}" convert "{tiny_npz}" --force {stream}; exit ${{PIPESTATUS[0]}}'
        assert subprocess.run(["bash", "-c", command], cwd=tmp_path).returncode == 0


def test_a_terminal_without_unicode_still_gets_the_verdict(tiny_npz: Path, tmp_path: Path) -> None:
    result = bit("convert", tiny_npz, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "verified" in result.stdout


def test_python_m_convert_is_the_command(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-m", "convert"], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.startswith("Usage: bit [OPTIONS] COMMAND [ARGS]...\n\n")
    assert (result.returncode, result.stderr) == (2, "")
