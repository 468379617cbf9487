"""Verifications that were never run, to be shown on a page."""

from __future__ import annotations

import math
from dataclasses import replace

from bit.config import BitConfig
from convert.checkpoints.manifest import Manifest, Origin, Source
from convert.checkpoints.options import UNCHANGED
from convert.files.base import File
from convert.network.parameters import parameters
from convert.network.taps import tap_names
from convert.verification.diagnosis import Finding
from convert.verification.network import Epsilon, NetworkResult
from convert.verification.pixels import PixelCheck
from convert.verification.results import END_TO_END, ISOLATED, Agreement, Check
from convert.verification.verify import Verification

RUNS = {
    ("definition", "source"): ("float64",),
    ("definition", "written"): ("float64",),
    ("bit (PyTorch)", "written"): ("float64", "float32"),
    ("bit.flax (JAX)", "source"): ("float64", "float32"),
    ("bit.keras (TensorFlow)", "source"): ("float32",),
    ("timm", "source"): ("float64", "float32"),
    ("transformers", "written"): ("float64", "float32"),
}
HASH = "0123456789abcdef" * 4


def made_up(architecture: str = "R14x1") -> tuple[Verification, Manifest]:
    """A verification that passed, and its record, as large as the real ones; nothing was run for it."""
    config = BitConfig.from_architecture(architecture)
    trials = NetworkResult(reference="recorded outputs of the original code")
    for order, ((name, side), dtypes) in enumerate(RUNS.items()):
        for dtype in dtypes:
            trials.checks += checks(config, name, side, dtype, END_TO_END, 1 + order / 10)
            about = {"version": "1.2.3", "device": "CPU"} | ({"threads": "2", "TF32": "off"} if order > 1 else {})
            trials.ran[trials.checks[-1].run] = about
            for image, count in (("square", 2), ("odd", 1)):
                trials.agreements.append(Agreement(name, side, dtype, image, count, count, count, 0.102, 6e-14))
        if "float64" in dtypes and order:
            trials.checks += checks(config, name, side, "float64", ISOLATED, 1 + order / 10)
    trials.not_run = {"onnxruntime": "it reads neither the written layout nor the source's"}
    trials.epsilon = Epsilon("transformers", 1e-8, 1e-10, "odd", "logits", 3.5e-4)
    rows = [
        {
            "parameter": item.name,
            "source": f"resnet/{item.name}",
            "target": f"bit.encoder.{item.name.replace('/', '.')}",
            "transform": "hwio -> oihw",
            "dtype": "float32",
            "shape": [64, 3, 7, 7],
        }
        for item in parameters(config)
    ]
    source = Source("../a.npz", "google", "npz", {"a.npz": File(102245728, HASH)})
    files = {"config.json": File(602, HASH), "model.safetensors": File(102214320, HASH)}
    labels = (f"Synthetic-{architecture}", architecture, 1000)
    record = Manifest(*labels, 1e-10, "transformers", UNCHANGED, Origin("a", HASH), source, files, rows)
    verification = Verification(labels[0], "transformers", *labels[1:], dict.fromkeys(files, HASH), len(rows))
    verification.trials = trials
    verification.pixels = [PixelCheck("landscape", 0.0, None), PixelCheck("small", 0.4, None)]
    verification.warnings = ["the names of the classes are left behind"]
    verification.environment = {"python": "3.11.7", "numpy": "2.4.6", "machine": "Linux x86_64, 2 cores"}
    return verification, record


def small() -> tuple[Verification, Manifest]:
    """With one plot, for what has little to do with plots."""
    verification, record = made_up()
    verification.checks[:] = [check for check in verification.checks if check.dtype == "float32"]
    return verification, record


def checks(config: BitConfig, name: str, side: str, dtype: str, mode: str, factor: float) -> list[Check]:
    taps, inputs = tap_names(config), {"square": 1.0, "odd": 0.7}
    noise, tolerance = (2e-15, 1e-9) if dtype == "float64" else (3e-7, 0.0)
    return [
        Check(
            "recorded outputs of the original code" if mode == END_TO_END else "the definition on the source file",
            *(name, side, dtype, mode, image, tap),
            error=noise * factor * scale * (depth + 1 if mode == END_TO_END else 1 + depth % 3),
            tolerance=tolerance or 4 * noise * scale * (depth + 1),
        )
        for depth, tap in enumerate(taps)
        for image, scale in inputs.items()
    ]


def failing(architecture: str = "R14x1") -> tuple[Verification, Manifest]:
    """Everything that can be wrong: files, taps that are off, not finite or exact, pixels, with and without a cause."""
    verification, record = made_up(architecture)
    for place, check in enumerate(verification.checks):
        if check.tap.startswith(("block3", "block4")) and check.implementation == "timm":
            verification.checks[place] = replace(check, error=check.error + 3e-4)
        elif check.tap in ("pooled", "logits") and check.implementation == "bit (PyTorch)":
            verification.checks[place] = replace(check, error=math.inf)
        elif check.tap == "pooled" and check.mode == ISOLATED:
            verification.checks[place] = replace(check, error=0.0)
    finding = Finding("timm", "block3/unit01", "the kernel of conv2 is mirrored", 3.1e-4, 2.2e-14)
    verification.trials.findings = [finding, Finding("bit (PyTorch)", "pooled", None, math.inf, None)]
    verification.pixels = [PixelCheck("landscape", 31.2, "mean and deviation are CLIP's"), PixelCheck("small", 2, None)]
    verification.problems = ["config.json is missing", "stem/kernel does not give back the bytes"]
    verification.roundings = ("float16",)
    return verification, record
