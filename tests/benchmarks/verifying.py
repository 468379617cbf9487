"""Time and peak memory of verifying: the command, and the process of every reference on its own.

Run by `make bench-verify`, on Linux. The figure of the command is that of its largest process.
Each reference is given what `bit verify` gives it: in float64 every image twice, as for
end-to-end and isolated errors in one pass.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from pathlib import Path

from benchmarks.measure import BIT, measure

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.network.inputs import batches
from convert.network.runner import run_part
from convert.network.taps import parts
from convert.references.registry import REFERENCES, Reference
from convert.references.worker import ReferenceProcess
from convert.sources.synthetic import write_npz
from convert.verification.results import END_TO_END, ISOLATED


def generate(path: Path, architecture: str) -> None:
    write_npz(path, BitConfig.from_architecture(architecture))


def peak(process: int) -> int:
    """The largest resident memory of a running process so far, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024 // 10**6


def measure_reference(reference: Reference, path: Path) -> None:
    """Run the whole network in each dtype, in a process for each, and print a line about it."""
    for dtype in reference.dtypes:
        start = time.perf_counter()
        with Checkpoint(path) as checkpoint, ReferenceProcess(reference, checkpoint) as process:
            implementation = process.load(dtype)
            alone = peak(process.identifier)
            modes = (END_TO_END, ISOLATED) if dtype == "float64" else (END_TO_END,)
            state = {f"{mode} {name}": images for mode in modes for name, images in batches().items()}
            for part in parts(checkpoint.config):
                for _, values in run_part(implementation, part, state):
                    state = dict(values)
            seconds, most = time.perf_counter() - start, peak(process.identifier)
        print(f"{reference.name:14} {dtype}  {seconds:6.1f} s  {most:5} MB, of which loaded {alone}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="R152x4")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="takes about 12 GB for R152x4")
    arguments = parser.parse_args()
    source = arguments.folder / f"Synthetic-{arguments.architecture}.npz"
    if not source.exists():
        print(f"generating {source.stem} …", flush=True)
        # In a process of its own: a child's peak memory counts from that of its parent.
        generation = multiprocessing.Process(target=generate, args=(source, arguments.architecture))
        generation.start()
        generation.join()
    converted = source.with_suffix(".transformers")
    if not converted.exists():
        measure([str(BIT), "convert", str(source), "--out", str(converted), "--no-verify"])
    for options in (["--quick"], []):
        seconds, most = measure([str(BIT), "verify", str(converted), "--source", str(source), *options])
        print(f"{' '.join(['bit verify', *options]):23} {seconds:6.1f} s  {most * 1.048576:5.0f} MB", flush=True)
    for reference in REFERENCES.values():
        paths = [source, converted]
        with Checkpoint(source) as checkpoint, Checkpoint(converted) as other:
            read = [reference.reads(checkpoint), reference.reads(other)]
        if reference.missing is None and any(read):
            measure_reference(reference, paths[read.index(True)])


if __name__ == "__main__":
    main()
