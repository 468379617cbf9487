"""Run a command and measure it as a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BIT = Path(sys.executable).with_name("bit")


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command} failed")
    return seconds, usage.ru_maxrss / 1024
