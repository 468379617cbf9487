"""Run the command `bit` as `python -m bit`."""

from __future__ import annotations

import runpy

runpy.run_module("convert", run_name="__main__", alter_sys=True)
