"""The process in which one reader is fuzzed, or in which one input is read again.

`python -m fuzzing.worker READER --findings DIR …` fuzzes and keeps what it finds in DIR; further options and folders
are those of libFuzzer. `python -m fuzzing.worker READER --read FILE` prints a finding and ends with 1, or prints
nothing.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

HANG = 60
"""Seconds of the processor after which an input that is read alone counts as one without end."""
ADDRESSES = 6 << 30
"""Bytes of addresses that an input may take beyond those in use at the start; more is a `MemoryError`. Far above the
memory allowed, because frameworks reserve addresses that they do not use."""
ATTEMPTS = 300
"""Attempts to make an input smaller."""


def fuzz(table: str, name: str, findings: Path, options: list[str]) -> None:
    """Fuzz a reader until libFuzzer ends this process."""
    import atheris

    with atheris.instrument_imports(include=["bit", "convert"]):
        from fuzzing.readers import Workplace, attempt

        reader, place = resolve_name(table)[name], Workplace(Path(tempfile.mkdtemp()))
        files = reader.seeds(place)
        for data in files.values():  # valid, and imports what is imported late
            reader.read(place, data)
    atheris.instrument_func(reader.read)
    seeds = Path(tempfile.mkdtemp())
    for file, data in files.items():
        (seeds / file).write_bytes(data)
    _limit_addresses()

    def read(data: bytes) -> None:
        found = attempt(reader, place, data, entry=False)
        if found is not None and reader.entry is not None:
            found = attempt(reader, place, data)
        if found is not None and not (target := findings / found.name).exists():
            target.write_bytes(data)
            target.with_suffix(".txt").write_text(found.text, "utf-8", "backslashreplace")
            if found.raised:
                target.write_bytes(smaller(data, lambda less: _name(attempt(reader, place, less)) == found.name))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        def native(part: bytes) -> bytes:
            return bytes(atheris.Mutate(part, len(part) + 16))

        return bytes(reader.mutate(data, random.Random(seed), native)[:most])

    atheris.Setup([sys.argv[0], *options, str(seeds)], read, custom_mutator=mutate)
    atheris.Fuzz()


def smaller(data: bytes, still: Callable[[bytes], bool]) -> bytes:
    """Return `data` without the parts that `still` holds without."""
    attempts, size = 0, len(data) // 2
    while size and attempts < ATTEMPTS:
        start = 0
        while start < len(data) and attempts < ATTEMPTS:
            less, attempts = data[:start] + data[start + size :], attempts + 1
            if still(less):
                data = less
            else:
                start += size
        size //= 2
    return data


def _name(found: object) -> str | None:
    return getattr(found, "name", None)


def _limit_time() -> None:
    """Limit the time of the processor; the clock on the wall would depend on what else runs."""
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + HANG, -1))


def _limit_addresses() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader")
    parser.add_argument("--table", default="fuzzing.readers:READERS", help=argparse.SUPPRESS)
    parser.add_argument("--findings", type=Path)
    parser.add_argument("--read", type=Path)
    options, rest = parser.parse_known_args()
    if options.read is None:
        fuzz(options.table, options.reader, options.findings, rest)
        return
    from fuzzing.readers import Workplace, attempt

    with tempfile.TemporaryDirectory() as name:
        reader, place = resolve_name(options.table)[options.reader], Workplace(Path(name))
        for data in reader.seeds(place).values():  # so that nothing is imported or prepared while the input is read
            reader.read(place, data)
        _limit_addresses()
        _limit_time()
        found = attempt(reader, place, options.read.read_bytes())
    if found is not None:
        sys.exit(found.text)


if __name__ == "__main__":
    main()
