"""Run the command `bit` as `python -m convert`."""

import runpy

runpy.run_module("convert.cli", run_name="__main__", alter_sys=True)
