"""Time of a forward pass and of a training step, `bit` against timm, transformers and others.

Run by `make bench-model`. The contenders alternate within a run; medians and ratios are printed, and the
share of what the CPU can do: the time of the convolutions and of the head alone, each by itself and at its
best, over that of the contender. All networks have random weights of the same sizes; none is trained.
`google-style` standardizes every kernel at each pass, as Google's code does. ONNX Runtime and OpenVINO run
the folded graph in float32, as a mark from outside; OpenVINO would choose bfloat16 where a CPU has it. On a
CUDA device the comparison covers float32 (TF32 off) and bfloat16 instead.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import transformers
from torch import Tensor, nn

from bit.config import BitConfig
from bit.layers import StandardizedConv2d
from bit.model import BitForImageClassification

Runner = Callable[[Tensor], object]

FASTEST = "bit.for_inference()"


class GoogleStyleConv2d(StandardizedConv2d):
    """Weight standardization as in google-research's PyTorch code: `var_mean` and a division at every pass."""

    def standardized(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return (self.weight - mean) / torch.sqrt(variance + self.eps)


def build(name: str, architecture: str) -> nn.Module:
    config = BitConfig.from_architecture(architecture)
    torch.manual_seed(0)
    if name == "timm":
        return timm.create_model(f"resnetv2_{architecture[1:]}_bit").eval()
    if name == "transformers":
        return transformers.BitForImageClassification(transformers.BitConfig(**config.to_dict())).eval()
    model = BitForImageClassification(config).eval()
    if name == "google-style":
        for module in model.modules():
            if isinstance(module, StandardizedConv2d):
                module.__class__ = GoogleStyleConv2d
    return model.for_inference() if name == FASTEST else model


class Logits(nn.Module):
    """A model with one tensor in and one out, to be exported as a graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values).logits
        return logits


def exported(architecture: str, batch: int, size: int, folder: Path) -> dict[str, Runner]:
    """Return ONNX Runtime and OpenVINO on the folded graph, or nothing where they are not installed."""
    try:
        import onnxruntime
        import openvino
    except ImportError:
        return {}
    path = folder / "model.onnx"
    model = Logits(build(FASTEST, architecture).to(memory_format=torch.contiguous_format))
    torch.onnx.export(model, (torch.zeros(batch, 3, size, size),), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    compiled = openvino.compile_model(path, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
    name = session.get_inputs()[0].name
    return {
        "ONNX Runtime": lambda x: session.run(None, {name: x.numpy()}),
        "OpenVINO": lambda x: compiled(x.numpy()),
    }


def alternate(runners: dict[str, Runner], x: Tensor, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    cuda = x.device.type == "cuda"
    with torch.inference_mode():
        for _ in range(2):
            for run in runners.values():
                run(x)
        for _ in range(rounds):
            for name, run in runners.items():
                if cuda:
                    torch.cuda.synchronize()
                start = time.perf_counter()
                run(x)
                if cuda:
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def arithmetic(model: nn.Module, x: Tensor, rounds: int) -> float:
    """Return the milliseconds of the convolutions and the head of a model of `for_inference` alone, for images `x`.

    Each layer runs by itself from its packed kernel, in parts of the batch: one image, four, or all. The least time of
    the rounds and of the parts counts, so that this is what the CPU can do, as far as oneDNN does it.
    """
    layers: dict[tuple[object, ...], tuple[nn.Module, torch.Size, int]] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = inputs[0].shape
        sizes = (layer.kernel_size, layer.stride) if isinstance(layer, StandardizedConv2d) else ()
        key = (shape, output.shape, sizes)
        layers[key] = (layer, shape[1:], layers[key][2] + 1 if key in layers else 1)

    kinds = (StandardizedConv2d, nn.Linear)
    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, kinds)]
    with torch.inference_mode():
        model(x[:1])
        for hook in hooks:
            hook.remove()
        return 1000 * sum(count * _least(layer, shape, len(x), rounds) for layer, shape, count in layers.values())


def _least(layer: nn.Module, shape: torch.Size, batch: int, rounds: int) -> float:
    """Return the least seconds in which a layer runs for a batch, whole or in parts."""
    found = []
    for part in {size for size in (1, 4, batch) if batch % size == 0}:
        x = torch.rand(part, *shape)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        layer(x)  # packs the kernel
        for _ in range(rounds):
            start = time.perf_counter()
            layer(x)
            found.append((time.perf_counter() - start) * (batch // part))
    return min(found)


def report(title: str, results: dict[str, float], ours: str, least: float | None = None) -> None:
    """Print the milliseconds of each contender; `least` are those of the arithmetic alone."""
    print(f"\n{title}", flush=True)
    for name, milliseconds in sorted(results.items(), key=lambda item: item[1]):
        share = "" if least is None else f"   {least / milliseconds:4.0%} of what this CPU can do"
        print(f"  {name:32} {milliseconds:8.1f} ms   {milliseconds / results[ours]:5.2f} × {ours}{share}", flush=True)


def inference(
    cases: list[tuple[str, int, int]], rounds: int, compile_too: bool, dtype: torch.dtype, device: str
) -> None:
    names = ["bit", FASTEST, "timm", "transformers", "google-style"]
    for architecture, batch, size in cases:
        x = (torch.rand(batch, 3, size, size) * 2 - 1).to(device, dtype)
        runners: dict[str, Runner] = {}
        for name in names:
            runners[name] = build(name, architecture).to(device, dtype)
            if compile_too:
                torch._dynamo.reset()
                runners[f"{name}, compiled"] = torch.compile(runners[name])  # the same weights
        if device == "cpu":
            runners["bit.for_inference(compile=True)"] = build("bit", architecture).for_inference(compile=True)
        least = arithmetic(build(FASTEST, architecture), x, rounds) if device == "cpu" else None
        with tempfile.TemporaryDirectory() as folder:
            if device == "cpu":
                runners |= exported(architecture, batch, size, Path(folder))
            results = alternate(runners, x, rounds)
        kind = f"{architecture}, batch {batch}, {size}×{size}, {str(dtype).removeprefix('torch.')}, {device}"
        report(kind, results, FASTEST, least)


def training_step(name: str) -> None:
    """One contender in a process of its own: median seconds and peak memory, printed."""
    model = build(name, "R50x1").train()
    x, seconds = torch.rand(4, 3, 224, 224), []
    for _ in range(6):
        start = time.perf_counter()
        outputs = model(x)
        (outputs if isinstance(outputs, Tensor) else outputs.logits).square().mean().backward()
        seconds.append(time.perf_counter() - start)
    # Of this process alone: `ru_maxrss` would count from the memory of the parent.
    status = Path("/proc/self/status").read_text()
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(statistics.median(seconds[1:]), int(peak) / 1024)


def training(rounds: int) -> None:
    names = ("bit", "timm", "transformers")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            output = subprocess.run(
                [sys.executable, __file__, "--step", name], capture_output=True, text=True, check=True
            )
            seconds, megabytes = map(float, output.stdout.split()[-2:])
            found[name].append((seconds, megabytes))
    print("\ntraining step, R50x1, batch 4, 224×224: forward and backward, each in a process of its own")
    for name, runs in found.items():
        seconds, megabytes = (statistics.median(run[part] for run in runs) for part in (0, 1))
        print(f"  {name:32} {1000 * seconds:8.0f} ms   peak {megabytes:6.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="eager contenders alone, which takes a minute")
    parser.add_argument("--architecture", help="this one alone; all otherwise")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        training_step(arguments.step)
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        print(torch.cuda.get_device_name())
        for dtype in (torch.float32, torch.bfloat16):
            cases = [("R50x1", batch, 224) for batch in (1, 32, 256)]
            inference(cases, arguments.rounds, not arguments.no_compile, dtype, "cuda")
        return
    print("no CUDA device, so the CPU is measured")
    cases = [("R50x1", 1, 224), ("R50x1", 8, 224), ("R50x1", 1, 448), ("R50x1", 8, 448), ("R101x3", 1, 224)]
    cases = [case for case in cases if arguments.architecture in (None, case[0])]
    inference(cases, arguments.rounds, not arguments.no_compile, torch.float32, "cpu")
    training(3)


if __name__ == "__main__":
    main()
