"""Compare loss and gradients of two automatic differentiations, PyTorch's and JAX's, of the converted weights."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.gradients import Differentiable, PartGradients, backward, cross_entropy
from convert.network.inputs import images
from convert.network.oracle import Oracle
from convert.network.runner import Batches, Implementation, run_network
from convert.network.taps import Array, Part, parts
from convert.progress import Progress, tracked
from convert.references.registry import REFERENCES
from convert.references.training import FOLDER
from convert.references.worker import ReferenceProcess
from convert.verification.metrics import relative_l2
from convert.verification.results import END_TO_END, GRADIENT_TOLERANCES, ISOLATED, RECORDED_STEPS, GradientCheck

COMPARED, REFERENCE = "pytorch", "flax"
"""The reference implementations that are differentiated."""
INPUT = (3, 2, 129, 96)
"""Seed, count, height and width of the images. The height is odd in every stage, the width even until the last: strides
and borders of both kinds are differentiated, and JAX compiles each part for one size only."""
NAME = "images"
RECORDED = "R14x1-schedule"
"""The recording whose steps are repeated: the one with the smallest images. The tests repeat them all."""


def verify_gradients(checkpoint: Checkpoint, progress: Progress) -> tuple[GradientCheck, ...]:
    """Differentiate the network in PyTorch and in JAX, each in a process, and repeat recorded steps in PyTorch.

    The weights must not be standardized already. Raises `CheckpointError` if a process fails.
    """
    with (
        ReferenceProcess(REFERENCES[REFERENCE], checkpoint) as of_reference,
        ReferenceProcess(REFERENCES[COMPARED], checkpoint) as of_compared,
    ):
        progress("repeating recorded training steps", 0, 1)
        repeated = of_compared.repeat_steps(FOLDER / f"{RECORDED}.safetensors")
        progress("repeating recorded training steps", 1, 1)
        found, reference = of_compared.load("float64"), of_reference.load("float64")
        compared = compare_gradients(found, reference, checkpoint.oracle(), progress)
        every = parts(BitConfig.from_architecture("R14x1"))
        return (*compared, *recorded_steps(found.name, RECORDED, repeated, every))


def compare_gradients(
    found: Differentiable, reference: Differentiable, oracle: Oracle, progress: Progress
) -> list[GradientCheck]:
    """Compare the loss with the oracle's, and every gradient with the reference's, in the order of the network.

    End-to-end, each implementation propagates the gradient of the mean cross-entropy of seeded labels through its own
    activations; a network without a head has a seeded weighted sum of the pooled features as the loss. Isolated, both
    are given the oracle's input of a part, and seeded numbers as the gradient with respect to the output, so an error
    names the part, and a head of zeros hides nothing.
    """
    config, batch = oracle.config, {NAME: images(*INPUT, channels=oracle.config.num_channels)}
    every, checks = parts(config), list[GradientCheck]()
    with tempfile.TemporaryDirectory(prefix="bit-gradients-") as folder:
        runs = [
            _outputs(item, config, batch, Path(folder, str(n))) for n, item in enumerate((oracle, found, reference))
        ]
        expected, *outputs = ({part: run[part.name] for part in every} for run in runs)
        inputs = dict(zip(every, [batch, *expected.values()], strict=False))
        last = every[-1]
        loss, _ = _loss(expected[last], last)
        chains = []
        for implementation, own in zip((found, reference), outputs, strict=True):
            value, cotangent = _loss(own[last], last)
            error = relative_l2(np.array([value]), np.array([loss]))
            checks.append(_check(implementation, oracle, END_TO_END, last, "loss", error))
            chains.append(backward(implementation, every, [batch, *list(own.values())[:-1]], {NAME: cotangent}))
        steps = tracked(zip(*chains, strict=True), "comparing gradients", len(every), progress)
        for (part, ours), (_, theirs) in steps:
            given = part, inputs[part], {NAME: _seeded(part.name, expected[part][NAME].shape)}
            isolated = found.differentiate(*given), reference.differentiate(*given)
            for mode, pair in ((END_TO_END, (ours, theirs)), (ISOLATED, isolated)):
                errors = _errors(part, *pair)
                checks += (_check(found, reference, mode, part, name, error) for name, error in errors.items())
    order = [part.name for part in every]
    return sorted(checks, key=lambda check: (check.mode, order.index(check.part)))


def recorded_steps(
    implementation: str, name: str, pairs: Mapping[str, tuple[Array, Array]], every: list[Part]
) -> Iterator[GradientCheck]:
    """Yield the errors of repeated training steps; `pairs` is what `training.repeat_steps` returns."""
    reference = f"training steps of google-research/big_transfer, {name}"
    for parameter, pair in pairs.items():
        part = next((part for part in every if parameter.startswith(f"{part.prefix}/")), every[-1])
        tolerance = GRADIENT_TOLERANCES[RECORDED_STEPS]
        yield GradientCheck(
            reference, implementation, RECORDED_STEPS, part.name, parameter, relative_l2(*pair), tolerance
        )


def _outputs(implementation: Implementation, config: BitConfig, batch: Batches, folder: Path) -> dict[str, Batches]:
    """Return every tap of the network by name, kept in files of a new folder."""
    folder.mkdir()
    found: dict[str, Batches] = {}
    for tap, values in run_network(implementation, config, batch):
        path = folder / f"{len(found)}.npy"
        np.save(path, values[NAME])
        found[tap] = {NAME: np.load(path, mmap_mode="r")}
    return found


def _loss(output: Batches, part: Part) -> tuple[float, Array]:
    """Return the loss of the network's last output, and the gradient with respect to it."""
    values = np.asarray(output[NAME])
    if part.kind == "logits":
        return cross_entropy(values, 3 * np.arange(len(values)) % values.shape[1])  # the labels of the recorded steps
    weights = _seeded(part.name, values.shape)
    return float((weights * values).sum()), weights


def _seeded(name: str, shape: tuple[int, ...]) -> Array:
    """Return numbers in [-1, 1], seeded with a name."""
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)


def _errors(part: Part, found: PartGradients, expected: PartGradients) -> dict[str, float]:
    """Return the relative L2 error of every gradient of a part; infinite for one that only one side has."""
    sides = [{**side.parameters, f"{part.prefix}/input": side.inputs[NAME]} for side in (found, expected)]
    missing = np.zeros(0)
    return {name: relative_l2(*(side.get(name, missing) for side in sides)) for name in sides[1] | sides[0]}


def _check(
    found: Implementation, reference: Implementation, mode: str, part: Part, parameter: str, error: float
) -> GradientCheck:
    tolerance = GRADIENT_TOLERANCES[mode]
    return GradientCheck(reference.name, found.name, mode, part.name, parameter, error, tolerance)
