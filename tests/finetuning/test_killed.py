"""A training that is killed at any moment is resumed by the same call, and ends with the same bits."""

from __future__ import annotations

import importlib
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from support.images import stripes

import convert
from convert.files.base import file_sha256

KILLS = 10
OPTIONS: dict[str, Any] = {
    "size": 16,
    "batch": 8,
    "micro_batch": 4,
    "steps": 40,
    "mixup": 0.2,
    "evaluate_every": 7,
    "save_every": 3,
    "verify": False,
}


def started(checkpoint: Path, data: Path, out: Path) -> int:
    """Fine-tune in a process of its own, which has everything imported, and return the process."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            status = 0 if convert.finetune(checkpoint, data, out, **OPTIONS).finished else 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return process


def bits(out: Path) -> dict[str, str]:
    names = ("config.json", "model.safetensors", "preprocessor_config.json", "training.json")
    return {name: file_sha256(out / name) for name in names}


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_ten_kills_change_no_bit(tiny_npz: Path, tmp_path: Path) -> None:
    for module in ("bit.finetuning.engine", "bit.transformers", "convert.finetuning.run"):
        importlib.import_module(module)  # once for all processes, so that most kills hit the training
    data, chosen = stripes(tmp_path / "data", 12), random.Random(0)
    start = time.monotonic()
    assert os.waitpid(started(tiny_npz, data, tmp_path / "whole" / "out"), 0)[1] == 0
    seconds, expected = time.monotonic() - start, bits(tmp_path / "whole" / "out")
    killed = 0
    for number in range(KILLS):
        out = tmp_path / f"run{number}" / "out"
        process = started(tiny_npz, data, out)
        time.sleep(chosen.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        status = os.waitpid(process, 0)[1]
        killed += os.WIFSIGNALED(status)
        left = sorted(path.name for path in out.with_name("out.training").glob("steps/checkpoint-*"))
        assert os.waitpid(started(tiny_npz, data, out), 0)[1] == 0
        assert bits(out) == expected, f"killed with {left}"
        print(f"kill {number + 1}: checkpoints {', '.join(left) or 'none'}, the same bits")
    assert killed >= KILLS // 2
