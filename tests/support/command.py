"""Run the command `bit`, in a process of its own or in this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from convert.cli.main import main

BIT = Path(sys.executable).with_name("bit")


def bit(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which takes a second."""
    return subprocess.run(
        [str(BIT), *map(str, arguments)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )


def run_here(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, where the process is not what is tested."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with contextlib.chdir(cwd):
            result = CliRunner(env=environment).invoke(main, list(map(str, arguments)), prog_name="bit")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def assert_refused(result: subprocess.CompletedProcess[str], message: str, folder: Path) -> None:
    """Check for exit status 2, one `error:` line with the message, no traceback and no output."""
    errors = [line for line in result.stderr.splitlines() if not line.endswith("…")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not (folder / "converted").exists()
