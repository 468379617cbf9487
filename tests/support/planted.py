"""Verifying conversions of R50x1 with planted faults; as a program it prints what is found beside the usual check."""

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
from convert.network.runner import walk
from convert.progress import silent
from convert.references import recordings
from convert.references.registry import CONVERTED
from convert.sources.synthetic import write_npz
from convert.verification.candidate import Candidate
from convert.verification.network import NetworkResult, compare_network
from convert.verification.verify import verify


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    caught: bool
    part: str
    """Where the diagnosis says that it begins."""
    words: str
    """What the diagnosis says."""
    allclose: str
    """What `allclose(atol=1e-3)` on the logits of one image says: caught, or missed."""

    @property
    def named(self) -> bool:
        return bool(self.fault.words) and self.fault.words in self.words


def outcomes(source: Path, right: Path, workplace: Path, chosen: tuple[Fault, ...] = FAULTS) -> Iterator[Outcome]:
    """Plant each of the `chosen` faults into a copy of the folder `right`, converted from `source`, and verify it."""
    for number, fault in enumerate(chosen):
        folder = shutil.copytree(right, workplace / str(number))
        with Checkpoint(source) as checkpoint:
            yield (
                _network_outcome(fault, checkpoint, folder)
                if fault.network
                else _file_outcome(fault, checkpoint, folder)
            )
        shutil.rmtree(folder)


def _file_outcome(fault: Fault, source: Checkpoint, folder: Path) -> Outcome:
    if fault.weights is not None:
        plant_weights(folder, fault.weights)
    if fault.preprocessing is not None:
        plant_preprocessing(folder, fault.preprocessing)
    result = verify(folder, source, silent)
    usual = "missed"
    if fault.weights is not None:
        try:
            with Checkpoint(folder) as written:
                usual = _usual(source, Candidate(CONVERTED, written, _origin(folder)).definition())
        except CheckpointError:  # it does not load
            usual = "caught"
    pixels = [check for check in result.pixels if not check.passed]
    if pixels:
        return Outcome(fault, not result.passed, "pixels", pixels[0].explanation or "", usual)
    return _outcome(fault, result.trials, usual, " ".join(result.problems), not result.passed)


def _network_outcome(fault: Fault, source: Checkpoint, folder: Path) -> Outcome:
    assert fault.network is not None
    with Checkpoint(folder) as written:
        subject = Candidate(CONVERTED, written, _origin(folder))
        network = faulty_network(written, fault.network)
        records = recordings.find(subject.origin.sha256)
        trials = compare_network(subject, Candidate.source(source), records, (), silent, others=[network])
        return _outcome(fault, trials, _usual(source, network), "", not all(check.passed for check in trials.checks))


def _outcome(fault: Fault, trials: NetworkResult, usual: str, problems: str, caught: bool) -> Outcome:
    if not trials.findings:
        return Outcome(fault, caught, fault.part if fault.words in problems else "", problems, usual)
    finding = trials.findings[0]
    return Outcome(fault, caught, finding.part, finding.words, usual)


def _usual(source: Checkpoint, network: object) -> str:
    """One image of 224×224, and whether the logits are close."""
    image = {"": images(7, 1, 224, 224)}
    (*_, (_, found)), (*_, (_, true)) = (
        walk(implementation, source.config, image)  # type: ignore[arg-type]
        for implementation in (network, Candidate.source(source).definition())
    )
    return "missed" if np.allclose(found[""], true[""], atol=1e-3) else "caught"


def _origin(folder: Path) -> object:
    record = Manifest.read(folder)
    assert record is not None
    return record.origin


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
