"""Fuzz the readers of files: `make fuzz`, or for example `make fuzz ARGS="--reader npz --seconds 60"`.

Each reader runs in a process of its own. It starts with the files of `corpus`, those that `seeds.py` makes, and what
earlier campaigns kept. Ends with 1 if there is a finding, with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name

from fuzzing.readers import CORPUS, MAX_SECONDS

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "fuzzing"
"""Default folder of findings, and of inputs that reached new code."""
MEMORY = Path("/dev/shm")
"""A folder in memory, where there is one: every input is a new file."""
OPTIONS = (
    # What ends a process is read again alone, because this is not the time of the processor.
    f"-timeout={MAX_SECONDS}",
    # A process that grew so far is started again; what one input takes is measured by the process itself.
    "-rss_limit_mb=4000",
    # Room for JSON that is nested 10^5 deep, and from the start.
    "-max_len=262144",
    "-len_control=0",
)
"""Options of libFuzzer."""
BLOCKED = 1200
"""Seconds after which an input that is read alone counts as one without end, though the processor is idle."""
STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
"""A line of libFuzzer: inputs read, edges and features of the code reached, inputs kept."""
ARTIFACT = re.compile(r"(?:timeout|oom|crash|leak)-[0-9a-f]{40}")
"""Name of an input with which libFuzzer ended the process."""


@dataclass(frozen=True)
class Campaign:
    """The result of fuzzing one reader."""

    reader: str
    seconds: float = 0
    executions: int = 0
    edges: int = 0
    """Branches of `bit` and `convert` that were reached."""
    features: int = 0
    """Those, counted by how often they were taken."""
    corpus: int = 0
    """Inputs that reached something new."""
    findings: tuple[str, ...] = ()
    """Paths of the inputs; beside each is a text with the traceback."""
    interrupted: bool = False


def campaign(reader: str, table: str, seconds: float, folder: Path) -> Campaign:
    """Fuzz one reader for some seconds; findings and new inputs are kept in `folder`."""
    inputs, findings = folder / "inputs", folder / "findings"
    inputs.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    for old in findings.iterdir():  # tried again: what still fails is found again
        old.unlink() if old.suffix == ".txt" else old.replace(inputs / old.name)
    start, done = time.monotonic(), Campaign(reader)
    while (left := seconds - (time.monotonic() - start)) >= 1 and not done.interrupted:
        done = _run(done, table, int(left), folder)
    return replace(done, seconds=round(time.monotonic() - start), findings=_found(findings))


def _run(before: Campaign, table: str, seconds: int, folder: Path) -> Campaign:
    """Run one process, until the time is over or an input ends it; return the figures added to those before."""
    stored, findings, now, lines = CORPUS / before.reader, folder / "findings", before, deque[str](maxlen=20)
    command = [*_worker(before.reader, table), "--findings", findings, *OPTIONS, f"-artifact_prefix={findings}/"]
    command += [f"-max_total_time={seconds}", folder / "inputs", *([stored] if stored.is_dir() else [])]
    with (
        _in_memory() as environment,
        subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace", env=environment
        ) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                lines.append(line)
                if match := STATUS.match(line):
                    executions, edges, features, corpus = map(int, match.groups())
                    now = replace(before, executions=before.executions + executions)
                    now = replace(now, edges=edges, features=features, corpus=corpus)
                    _show(now, len(_found(findings)))
        except KeyboardInterrupt:
            process.terminate()
            return replace(now, interrupted=True)
    if process.returncode:
        ended = [path for path in findings.iterdir() if ARTIFACT.fullmatch(path.name)]
        if not [path for path in ended if not path.with_suffix(".txt").exists()]:
            raise SystemExit(f"fuzzing {before.reader} failed:\n{''.join(lines)}")
        for path in ended:
            _repeat(before.reader, table, path)
    return now


def _repeat(reader: str, table: str, path: Path) -> None:
    """Read an input that ended a process once more, alone; forget it if nothing happens, else write down what did."""
    with _in_memory() as environment:
        command = [*_worker(reader, table), "--read", path]
        try:
            result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=BLOCKED)
        except subprocess.TimeoutExpired:
            text = f"nothing for {BLOCKED} s\n"
        else:
            ended = f"died of {signal.Signals(-result.returncode).name}\n" if result.returncode < 0 else ""
            text = ended + result.stderr if result.returncode else ""
    if text:
        path.with_suffix(".txt").write_text(text, "utf-8")
    else:
        path.unlink()


def _worker(reader: str, table: str) -> list[str]:
    return [sys.executable, "-m", "fuzzing.worker", reader, "--table", table]


@contextlib.contextmanager
def _in_memory() -> Iterator[dict[str, str]]:
    """Give the environment of a process whose temporary files are in memory, and are removed afterwards."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield {**os.environ, "TMPDIR": folder, "BIT_CACHE": folder, "OMP_NUM_THREADS": "1"}


def _found(findings: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path) for path in findings.iterdir() if path.suffix != ".txt"))


def _show(now: Campaign, findings: int) -> None:
    """Show the figures of a reader in one line, which the next one replaces."""
    if sys.stderr.isatty():
        line = f"{now.reader}: {now.executions} inputs, {now.edges} branches, {findings} findings"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _print_table(campaigns: list[Campaign]) -> None:
    print("\n| reader | seconds | inputs | branches | features | corpus | findings |\n|---|---|---|---|---|---|---|")
    for done in campaigns:
        figures = (done.seconds, done.executions, done.edges, done.features, done.corpus, len(done.findings))
        print(f"| {done.reader} | {' | '.join(map(str, figures))} |")
    for path in (path for done in campaigns for path in done.findings):
        text = Path(path).with_suffix(".txt")
        print(f"\n{path}\n{text.read_text('utf-8') if text.exists() else ''}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="fuzzing.readers:READERS", help=argparse.SUPPRESS)
    parser.add_argument("--reader", action="append", help="a reader of the table in readers.py; may be repeated")
    parser.add_argument("--seconds", type=int, default=20, help="seconds for each reader (default 20)")
    parser.add_argument("--keep", type=Path, default=KEPT, help="folder of findings and inputs (default build/fuzzing)")
    parser.add_argument("--read", type=Path, metavar="FILE", help="only read this file, as the one reader does")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed: run make setup, or build it with clang (pip install atheris)")
    known = resolve_name(options.table)
    if unknown := set(options.reader or ()) - set(known):
        parser.error(f"unknown reader {', '.join(unknown)}; choose from {', '.join(known)}")
    if options.read is not None:
        if len(options.reader or ()) != 1:
            parser.error("--read needs one --reader")
        sys.exit(subprocess.run([*_worker(options.reader[0], options.table), "--read", options.read]).returncode)
    done: list[Campaign] = []
    for reader in options.reader or known:
        try:
            done.append(campaign(reader, options.table, options.seconds, options.keep / reader))
        except KeyboardInterrupt:  # before the first input, or while one is read again
            done.append(Campaign(reader, interrupted=True))
        if done[-1].interrupted:
            break
    if options.json:
        print(json.dumps([asdict(figures) for figures in done], indent=2))
    else:
        _print_table(done)
    sys.exit(1 if any(figures.findings for figures in done) else 130 if done[-1].interrupted else 0)


if __name__ == "__main__":
    main()
