"""Invented verifications, to be shown in the report and on the terminal."""

from __future__ import annotations

import math
from dataclasses import replace

from bit.config import BitConfig
from convert.checkpoints.manifest import Manifest, Origin, Source, TensorRow
from convert.checkpoints.options import UNCHANGED
from convert.files.base import File
from convert.network.parameters import parameters
from convert.network.taps import tap_names
from convert.verification.results import (
    CONVERTED,
    END_TO_END,
    ISOLATED,
    SOURCE,
    Agreement,
    Check,
    EpsilonEffect,
    Finding,
    NetworkResult,
    PixelCheck,
    Verification,
)

RUNS = {
    ("oracle", SOURCE): ("float64",),
    ("oracle", CONVERTED): ("float64",),
    ("bit (PyTorch)", CONVERTED): ("float64", "float32"),
    ("bit.flax (JAX)", SOURCE): ("float64", "float32"),
    ("bit.keras (TensorFlow)", SOURCE): ("float32",),
    ("timm", SOURCE): ("float64", "float32"),
    ("transformers", CONVERTED): ("float64", "float32"),
}
HASH = "0123456789abcdef" * 4


def made_up(architecture: str = "R14x1") -> tuple[Verification, Manifest]:
    """Return a verification that passed, as large as a real one, and a manifest. Nothing was run for it."""
    config = BitConfig.from_architecture(architecture)
    found: list[Check] = []
    agreements: list[Agreement] = []
    environments = {}
    for order, ((name, side), dtypes) in enumerate(RUNS.items()):
        for dtype in dtypes:
            found += checks(config, name, side, dtype, END_TO_END, 1 + order / 10)
            about = {"version": "1.2.3", "device": "CPU"} | ({"threads": "2", "TF32": "off"} if order > 1 else {})
            environments[found[-1].run] = about
            for image, count in (("square", 2), ("odd", 1)):
                agreements.append(Agreement(name, side, dtype, image, count, count, count, 0.102, 6e-14))
        if "float64" in dtypes and order:
            found += checks(config, name, side, "float64", ISOLATED, 1 + order / 10)
    network = NetworkResult(
        tuple(found),
        tuple(agreements),
        environments,
        not_run={"onnxruntime": "it cannot read the converted layout or the source"},
        epsilon=EpsilonEffect("transformers", 1e-8, 1e-10, "odd", "logits", 3.5e-4),
        reference="recordings of the original code",
    )
    rows = [
        TensorRow(
            parameter=item.name,
            source=f"resnet/{item.name}",
            target=f"bit.encoder.{item.name.replace('/', '.')}",
            transform="hwio -> oihw",
            dtype="float32",
            shape=[64, 3, 7, 7],
        )
        for item in parameters(config)
    ]
    source = Source("../a.npz", "google", "npz", {"a.npz": File(102245728, HASH)})
    files = {"config.json": File(602, HASH), "model.safetensors": File(102214320, HASH)}
    labels = (f"Synthetic-{architecture}", architecture, 1000)
    manifest = Manifest(*labels, 1e-10, "transformers", UNCHANGED, Origin("a", HASH), source, files, rows)
    verification = Verification(
        *(labels[0], "transformers", *labels[1:]),
        files=dict.fromkeys(files, HASH),
        tensors_exact=len(rows),
        network=network,
        pixels=(PixelCheck("landscape", 0.0, None), PixelCheck("small", 0.004, None)),
        warnings=("the layout does not store the names of the classes",),
        environment={
            "date": "2026-03-14T15:09:26+00:00",
            "python": "3.11.7",
            "numpy": "2.4.6",
            "machine": "Linux x86_64, 2 cores",
        },
    )
    return verification, manifest


def with_checks(verification: Verification, found: list[Check]) -> Verification:
    """Return the verification with other checks."""
    return replace(verification, network=replace(verification.network, checks=tuple(found)))


def small() -> tuple[Verification, Manifest]:
    """Return a verification with a single plot, for tests of everything else."""
    verification, manifest = made_up()
    return with_checks(verification, [check for check in verification.checks if check.dtype == "float32"]), manifest


def checks(config: BitConfig, name: str, side: str, dtype: str, mode: str, factor: float) -> list[Check]:
    """Return the checks of one run, with errors that grow with depth."""
    noise, tolerance = (2e-15, 1e-9) if dtype == "float64" else (3e-7, 0.0)
    return [
        Check(
            "recordings of the original code" if mode == END_TO_END else "the oracle on the source file",
            *(name, side, dtype, mode, image, tap),
            error=noise * factor * scale * (depth + 1 if mode == END_TO_END else 1 + depth % 3),
            tolerance=tolerance or 4 * noise * scale * (depth + 1),
        )
        for depth, tap in enumerate(tap_names(config))
        for image, scale in {"square": 1.0, "odd": 0.7}.items()
    ]


def failing(architecture: str = "R14x1") -> tuple[Verification, Manifest]:
    """Return a verification with every kind of failure: of files, of taps and of pixels, explained and not."""
    verification, manifest = made_up(architecture)
    found = list(verification.checks)
    for place, check in enumerate(found):
        if check.tap.startswith(("block3", "block4")) and check.implementation == "timm":
            found[place] = replace(check, error=check.error + 3e-4)
        elif check.tap in ("pooled", "logits") and check.implementation == "bit (PyTorch)":
            found[place] = replace(check, error=math.inf)
        elif check.tap == "pooled" and check.mode == ISOLATED:
            found[place] = replace(check, error=0.0)
    findings = (
        Finding("timm", "block3/unit01", "the kernel of conv2 is mirrored", 3.1e-4, 2.2e-14),
        Finding("bit (PyTorch)", "pooled", None, math.inf, None),
    )
    failed = replace(
        with_checks(verification, found),
        pixels=(PixelCheck("landscape", 31.2, "mean and deviation are CLIP's"), PixelCheck("small", 2, None)),
        problems=("config.json is missing", "stem/kernel does not convert back to the source exactly"),
        roundings=("float16",),
    )
    return replace(failed, network=replace(failed.network, findings=findings)), manifest
