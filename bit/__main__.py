"""Run the command `bit` as `python -m bit`, without importing the converter into the model library."""

import runpy

runpy.run_module("convert.cli", run_name="__main__", alter_sys=True)
