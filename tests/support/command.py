"""Running the command as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIT = Path(sys.executable).with_name("bit")


def bit(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIT), *map(str, arguments)], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )


def assert_refused(result: subprocess.CompletedProcess[str], message: str, folder: Path) -> None:
    """One `error:` line, exit status 2, no traceback, and nothing written."""
    errors = [line for line in result.stderr.splitlines() if not line.endswith("…")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert not (folder / "converted").exists()
