"""Verify conversions with planted faults; as a program it prints the findings for R50x1 and the usual check."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from support.conversions import convert
from support.faults import FAULTS, Fault, faulty_network, plant_preprocessing, plant_weights

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest
from convert.errors import CheckpointError
from convert.network.inputs import images
from convert.network.runner import Implementation, run_network
from convert.progress import silent
from convert.references.recordings import find_recordings
from convert.sources.synthetic import write_npz
from convert.verification.network import compare_network
from convert.verification.results import CONVERTED, SOURCE, NetworkResult
from convert.verification.tap_errors import Candidate
from convert.verification.verify import Settings, verify


@dataclass(frozen=True)
class Outcome:
    """The result of verifying a conversion with a planted fault."""

    fault: Fault
    caught: bool
    part: str
    """The part that the diagnosis names."""
    words: str
    """The explanation of the diagnosis."""
    allclose: str
    """Result of the usual check, `allclose(atol=1e-3)` on the logits of one image: caught or missed."""

    @property
    def named(self) -> bool:
        return bool(self.fault.words) and self.fault.words in self.words


def outcomes(source: Path, right: Path, workplace: Path, chosen: tuple[Fault, ...] = FAULTS) -> Iterator[Outcome]:
    """Plant each of the `chosen` faults into a copy of the folder `right`, converted from `source`, and verify it."""
    for number, fault in enumerate(chosen):
        folder = shutil.copytree(right, workplace / str(number))
        with Checkpoint(source) as checkpoint:
            yield (_network_outcome if fault.network else _file_outcome)(fault, checkpoint, folder)
        shutil.rmtree(folder)


def _file_outcome(fault: Fault, source: Checkpoint, folder: Path) -> Outcome:
    if fault.weights is not None:
        plant_weights(folder, fault.weights)
    if fault.preprocessing is not None:
        plant_preprocessing(folder, fault.preprocessing)
    result = verify(folder, _manifest(folder), source, Settings(), silent)
    usual = "missed"
    if fault.weights is not None:
        try:
            with Checkpoint(folder) as converted:
                usual = _usual(source, converted.oracle())
        except CheckpointError:  # it does not load
            usual = "caught"
    pixels = [check for check in result.pixels if not check.passed]
    if pixels:
        return Outcome(fault, not result.passed, "pixels", pixels[0].explanation or "", usual)
    return _outcome(fault, result.network, usual, " ".join(result.problems), not result.passed)


def _network_outcome(fault: Fault, source: Checkpoint, folder: Path) -> Outcome:
    assert fault.network is not None
    with Checkpoint(folder) as converted:
        sides = Candidate(CONVERTED, converted), Candidate(SOURCE, source)
        network, recordings = faulty_network(converted, fault.network), find_recordings(sides[0].origin.sha256)
        result = compare_network(*sides, recordings, (), silent, others=[network])
        return _outcome(fault, result, _usual(source, network), "", not all(check.passed for check in result.checks))


def _outcome(fault: Fault, result: NetworkResult, usual: str, problems: str, caught: bool) -> Outcome:
    if not result.findings:
        return Outcome(fault, caught, fault.part if fault.words in problems else "", problems, usual)
    finding = result.findings[0]
    return Outcome(fault, caught, finding.part, finding.words, usual)


def _usual(source: Checkpoint, network: Implementation) -> str:
    """Compare the logits of one image of 224×224 as people usually do."""
    image = {"": images(7, 1, 224, 224)}
    (*_, (_, found)), (*_, (_, expected)) = (
        run_network(implementation, source.config, image) for implementation in (network, source.oracle())
    )
    return "missed" if np.allclose(found[""], expected[""], atol=1e-3) else "caught"


def _manifest(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    assert manifest is not None
    return manifest


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source = place / "Synthetic-R50x1.npz"
        write_npz(source, BitConfig.from_architecture("R50x1"))
        right = convert(source, "transformers", place / "right")
        print("| planted | caught | named | diagnosis | allclose(atol=1e-3) |\n|---|---|---|---|---|", flush=True)
        found = []
        for outcome in outcomes(source, right, place):
            found.append(outcome)
            marks = ["yes" if mark else "no" for mark in (outcome.caught, outcome.named)]
            print(
                f"| {outcome.fault.name} | {' | '.join(marks)} | {outcome.words[:150]} | {outcome.allclose} |",
                flush=True,
            )
    caught, named = sum(outcome.caught for outcome in found), sum(outcome.named for outcome in found)
    missed = sum(outcome.allclose == "missed" for outcome in found)
    print(f"\n{len(found)} faults: {caught} caught, {named} named; the usual check misses {missed}")
    sys.exit(caught < len(found))


if __name__ == "__main__":
    main()
