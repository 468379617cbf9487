"""Generate mutants of right conversions and judge each: `make mutants ARGS="--count 2000 --seed 0"`.

Outcomes are kept, one JSON object a line, so that a campaign that was ended goes on. Ends with 1 if a mutant survives
everything or a right conversion is refused, with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from random import Random

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before any library: each process has one thread
    os.environ.setdefault(variable, "1")

from mutants import report  # noqa: E402
from mutants.correct import judge_correct  # noqa: E402
from mutants.judge import OPERATORS, judge  # noqa: E402
from mutants.mutant import FAMILIES, Mutant, Outcome  # noqa: E402
from mutants.networks import LARGE, Base, prepared  # noqa: E402

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "mutants"
"""Default folder of outcomes and pages."""
MEMORY = Path("/dev/shm")
EACH, OF_LARGE = 24, 8
"""Mutants of one random network, and of one of `LARGE`."""
WEIGHTS = {"layout tables": 5, "weights": 7, "network": 7, "preprocessing": 3, "metadata": 3}
"""Shares of the families in a network's mutants."""


def chosen(base: Base, seed: int, count: int, families: Sequence[str], operators: Sequence[str]) -> list[Mutant]:
    """Return mutants of one network: operators in random order, each at a random place."""
    rng = Random(f"mutants {seed} {base.number}")
    queues: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for (family, name), operator in OPERATORS.items():
        if family in families and (not operators or name in operators) and (places := operator.places(base)):
            queues.setdefault(family, []).append((name, places))
    found: dict[str, Mutant] = {}
    for queue in queues.values():
        rng.shuffle(queue)
    for _ in range(20 * count):
        if len(found) >= count or not queues:
            break
        family = rng.choices(list(queues), [WEIGHTS[name] for name in queues])[0]
        name, places = queues[family].pop(0)
        queues[family].append((name, places))
        mutant = Mutant(family, name, rng.choice(list(places)), base.number, rng.randrange(1 << 30))
        found.setdefault(mutant.key, mutant)
    return list(found.values())


def judged(
    number: int, seed: int, count: int, families: Sequence[str], operators: Sequence[str], known: frozenset[str]
) -> Iterator[Outcome]:
    """Make a network, and judge those of the mutants that are not known yet."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as place:
        base = prepared(number, seed, Path(place))
        for mutant in chosen(base, seed, count, families, operators):
            if mutant.key not in known:
                yield judge(mutant, base)
        base.close()


def _all(*arguments: object) -> list[Outcome]:
    return list(judged(*arguments))  # type: ignore[arg-type]


def numbers_of(count: int) -> list[tuple[int, int]]:
    """Return the number of each network with that of the mutants to make of it; large ones first, if there are many."""
    large = list(LARGE) if count >= 1000 else []
    left, numbers = count - OF_LARGE * len(large), [(number, OF_LARGE) for number in large]
    for number in range(-(-left // EACH)):
        numbers.append((number, min(EACH, left - EACH * number)))
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="mutants (default 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this family; may be repeated")
    parser.add_argument("--operator", action="append", help="only this operator; may be repeated")
    parser.add_argument("--correct", type=int, default=0, help="right conversions that must verify, instead of mutants")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)")
    parser.add_argument(
        "--keep", type=Path, default=KEPT, help="folder of outcomes and of the page (default build/mutants)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes of earlier runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and outcomes as JSON, too")
    options = parser.parse_args()
    if unknown := set(options.operator or ()) - {name for _, name in OPERATORS}:
        parser.error(f"unknown operator {', '.join(sorted(unknown))}; choose from {', '.join(n for _, n in OPERATORS)}")
    options.keep.mkdir(parents=True, exist_ok=True)
    sys.exit(_correct(options) if options.correct else _campaign(options))


def _campaign(options: argparse.Namespace) -> int:
    path = options.keep / f"outcomes-{options.seed}.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    families, operators = tuple(options.family or FAMILIES), tuple(options.operator or ())
    outcomes = [
        outcome
        for outcome in kept(path)
        if outcome.mutant.family in families and (not operators or outcome.mutant.operator in operators)
    ]
    known, interrupted = frozenset(outcome.mutant.key for outcome in outcomes), False
    tasks = [(n, options.seed, count, families, operators, known) for n, count in numbers_of(options.count)]
    start = time.monotonic()
    with path.open("a", encoding="utf-8") as file, _pool(options.jobs) as pool:
        futures = [pool.submit(_all, *task) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                for outcome in future.result():
                    outcomes.append(outcome)
                    file.write(json.dumps(outcome.to_dict(), ensure_ascii=False) + "\n")
                file.flush()
                _show(f"{done} of {len(futures)} networks, {len(outcomes)} mutants, {time.monotonic() - start:.0f} s")
        except KeyboardInterrupt:
            interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
    outcomes.sort(key=lambda item: (FAMILIES.index(item.mutant.family), item.mutant.operator, item.mutant.key))
    print(report.text(outcomes))
    (options.keep / "mutants.html").write_text(report.html(outcomes, options.seed), "utf-8")
    print(f"\n{path}\n{options.keep / 'mutants.html'}")
    if options.json:
        options.json.write_text(json.dumps(report.figures(outcomes), indent=2, ensure_ascii=False), "utf-8")
    survived = [outcome for outcome in outcomes if not (outcome.everything or outcome.equivalent)]
    return 130 if interrupted else 1 if survived else 0


def _correct(options: argparse.Namespace) -> int:
    """Verify right conversions of random networks between random layouts, with random options."""
    failed, done, interrupted = [], 0, False
    with _pool(options.jobs) as pool:
        futures = [pool.submit(judge_correct, number, options.seed) for number in range(options.correct)]
        try:
            for future in as_completed(futures):
                about, problems = future.result()
                done += 1
                failed += [f"{about}: {problems}"] if problems else []
                _show(f"{done} of {options.correct} right conversions, {len(failed)} refused")
        except KeyboardInterrupt:
            interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
    print("".join(f"{line}\n" for line in failed) + f"{done} right conversions, {len(failed)} refused")
    return 130 if interrupted else 1 if failed else 0


def kept(path: Path) -> list[Outcome]:
    """Return the outcomes in a file; a line that is not whole, because the campaign was killed, is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            found.append(Outcome.from_dict(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            continue
    return found


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def _show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
