"""Time of an optimizer step: `bit finetune`'s engine against transformers' `Trainer` on transformers' model.

R50x1 at 224 pixels, a batch of 16 images, in float32 and with `--precision bf16`. Every contender trains in a process
of its own, one after the other in turn; the time is that between the ends of two steps. Run by `make bench-model`, or
alone: `python -m benchmarks.training`.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

ARCHITECTURE, SIZE, CLASSES = "R50x1", 224, 10
WARMUP = 1
"""Steps at the start of each process that are not counted."""


class Pixels(Dataset[dict[str, Any]]):
    """Random images, ready for the network: 8 bits for `bit`, float32 for transformers, as each prepares them."""

    def __init__(self, count: int, as_bytes: bool) -> None:
        torch.manual_seed(0)
        pixels = torch.randint(0, 256, (16, 3, SIZE, SIZE), dtype=torch.uint8)
        self._pixels = pixels if as_bytes else pixels.float() / 127.5 - 1
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"pixel_values": self._pixels[place % 16], "label": place % CLASSES, "place": place}


def run_bit(batch: int, micro_batch: int, steps: int, precision: Any) -> list[float]:
    """Return the seconds of each step of the engine of `bit finetune`."""
    from bit import BitConfig, BitForImageClassification
    from bit.finetuning.engine import Data, finetune
    from bit.finetuning.settings import Settings
    from bit.hyperrule import Mixup, Resolution, Schedule

    settings = Settings(Schedule(1, (), steps), Resolution(SIZE, SIZE), batch, micro_batch, precision=precision)
    model = BitForImageClassification(BitConfig.from_architecture(ARCHITECTURE, num_labels=CLASSES))
    ends: list[float] = []
    data = Data(Pixels(steps * batch, as_bytes=True), None, Mixup(0.0))
    with tempfile.TemporaryDirectory() as folder:
        finetune(model, data, settings, Path(folder), lambda step: ends.append(time.monotonic()))
    return [after - before for before, after in itertools.pairwise(ends)]


def run_transformers(batch: int, micro_batch: int, steps: int, precision: str) -> list[float]:
    """Return the seconds of each step of `Trainer` with the model of transformers and the same optimizer."""
    from transformers import BitConfig, BitForImageClassification, Trainer, TrainerCallback, TrainingArguments

    from bit import hyperrule

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            ends.append(time.monotonic())

    config = BitConfig(num_labels=CLASSES, layer_type="preactivation", global_padding=None)
    model = BitForImageClassification(config)
    optimizer = hyperrule.optimizer(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=batch // micro_batch,
            bf16=precision == "bf16",
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        images = Pixels(steps * batch, as_bytes=False)
        schedule = hyperrule.scheduler(optimizer, hyperrule.Schedule(1, (), steps))
        Trainer(model, arguments, train_dataset=images, optimizers=(optimizer, schedule), callbacks=[Clock()]).train()
    return [after - before for before, after in itertools.pairwise(ends)]


CONTENDERS = {"bit finetune": run_bit, "transformers' Trainer": run_transformers}


def training(rounds: int, batch: int = 16, micro_batch: int = 16, steps: int = 3) -> None:
    """Print the median of each contender in each precision, and the ratio to that of `bit finetune`."""
    for precision in ("fp32", "bf16"):
        found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(rounds):
            for name in CONTENDERS:
                command = [sys.executable, "-m", "benchmarks.training", "--step", name, "--precision", precision]
                sizes = [f"--batch={batch}", f"--micro-batch={micro_batch}", f"--steps={steps}"]
                output = subprocess.run([*command, *sizes], capture_output=True, text=True, check=True).stdout
                found[name] += map(float, output.split("seconds:")[-1].split())
        parts = f"batch {batch} as {batch // micro_batch} × {micro_batch}"
        print(f"\noptimizer step, {ARCHITECTURE}, {parts}, {SIZE}×{SIZE}, {precision}")
        ours = statistics.median(found["bit finetune"])
        for name, seconds in found.items():
            middle = statistics.median(seconds)
            print(f"  {name:32} {1000 * middle:8.0f} ms   {middle / ours:5.2f} × bit finetune", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.step:
        seconds = CONTENDERS[found.step](found.batch, found.micro_batch, found.steps + WARMUP, found.precision)
        print("seconds:", *seconds)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    training(found.rounds, found.batch, found.micro_batch, found.steps)


if __name__ == "__main__":
    main()
