"""Two processes take the steps of one: each has its share of the micro-batches, and all have the same λ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import stripes

from convert.checkpoints.training import Training


@pytest.mark.long
def test_two_processes_agree_with_one_to_rounding(tiny_npz: Path, tmp_path: Path) -> None:
    data = stripes(tmp_path / "data", 9)
    options = "--size 16 --batch 8 --micro-batch 2 --steps 6 --mixup 0.3 --no-verify".split()
    arguments = ["finetune", str(tiny_npz), "--data", str(data), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    runs = {"one": [sys.executable], "two": [sys.executable, *launch]}
    for name, start in runs.items():
        command = [*start, "-m", "convert", *arguments, "--out", str(tmp_path / name / "out")]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    one, two = (Training.beside(tmp_path / name / "out") for name in runs)
    assert one is not None
    assert two is not None
    assert one.curve.loss == pytest.approx(two.curve.loss, rel=1e-5)
    assert one.curve.learning_rate == two.curve.learning_rate
    found = [[item.accuracy for item in run.curve.evaluations] for run in (one, two)]
    assert found[0] == found[1], "the images of both processes are counted, each once"
    assert json.dumps(one.settings) == json.dumps(two.settings)
