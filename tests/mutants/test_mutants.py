"""A small campaign kills, locates and names mutants, and fails if a check is taken away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mutants import report
from mutants.correct import judge_correct
from mutants.judge import OPERATORS, judge
from mutants.mutant import FAMILIES, Mutant, Outcome
from mutants.networks import Base, prepared
from mutants.run import chosen, kept, numbers_of

from convert.verification.results import Verification

ROOT = Path(__file__).parents[2]
SMALL = 7
"""The number of a network of one unit, from timm to transformers."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    found = prepared(SMALL, 0, tmp_path_factory.mktemp("base") / "net")
    yield found
    found.close()


def planted(base: Base, family: str, operator: str, place: str = "") -> Outcome:
    places = list(OPERATORS[family, operator].places(base))
    return judge(Mutant(family, operator, place or places[0], base.number, 1), base)


def test_there_are_operators_in_five_families() -> None:
    assert {family for family, _ in OPERATORS} == set(FAMILIES)
    assert len(OPERATORS) > 150


def test_the_same_seed_makes_the_same_mutants(base: Base) -> None:
    first, second = (chosen(base, 3, 40, FAMILIES, ()) for _ in range(2))
    assert first == second
    assert len({mutant.key for mutant in first}) == 40
    assert first != chosen(base, 4, 40, FAMILIES, ())


def test_the_mutants_of_a_campaign_are_as_many_as_asked_for() -> None:
    for count in (1, 24, 25, 999, 2016):
        assert sum(each for _, each in numbers_of(count)) == count


def test_a_small_campaign_leaves_no_survivor(base: Base) -> None:
    outcomes = [judge(mutant, base) for mutant in chosen(base, 5, 14, FAMILIES, ())]
    assert [report.line(item) for item in report.survivors(outcomes)] == []
    different = [item for item in outcomes if not item.equivalent]
    assert len(different) >= 10
    assert [report.line(item) for item in different if not item.located] == []
    assert sum(item.named for item in different) >= 0.9 * len(different)
    assert sum(item.field["allclose"] for item in different) < len(different), "or the usual check would do"


@pytest.mark.parametrize(
    ("family", "operator", "place"),
    [
        ("metadata", "two labels exchanged", "config.json"),
        ("metadata", "one label changed", "config.json"),
        ("metadata", "another kind of problem", "config.json"),
    ],
)
def test_what_no_activation_shows_is_killed_without_the_source(
    base: Base, monkeypatch: pytest.MonkeyPatch, family: str, operator: str, place: str
) -> None:
    found = planted(base, family, operator, place)
    assert found.numbers
    assert found.located
    assert found.named
    monkeypatch.setattr("convert.verification.verify.compare_fingerprints", lambda *values: ())
    assert not planted(base, family, operator, place).numbers


def test_a_campaign_notices_that_nothing_is_compared(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = replace(Verification("", "", "", 0))
    monkeypatch.setattr("mutants.judge._verified", lambda *values, **options: passed)
    monkeypatch.setattr(Verification, "passed", property(lambda result: True))
    found = planted(base, "weights", "zeroed", "head/bias")
    assert report.survivors([found]) == [found]


def test_one_unbiased_variance_shows_in_the_part_alone(base: Base) -> None:
    """Behind a norm it leaves less than the tolerance of outputs: only a part with the oracle's input shows it."""
    found = planted(base, "network", "unbiased variance of kernels", "block1/unit01/conv2")
    assert (found.numbers, found.taps, found.located, found.named) == (True, False, True, True)


@pytest.mark.parametrize("operator", ["ReLU doubled", "padded with SAME"])
def test_a_network_that_computes_the_same_is_counted_apart(base: Base, operator: str) -> None:
    found = planted(base, "network", operator, "block1/unit01/" + ("norm2" if "ReLU" in operator else "conv2"))
    assert found.equivalent
    assert not found.everything
    assert report.survivors([found]) == []


def test_axes_of_length_one_make_the_same_file(base: Base) -> None:
    place = next(
        name for name in OPERATORS["layout tables", "another order of one array's axes"].places(base) if "conv1" in name
    )
    letters = place.rpartition(" ")[2]
    found = planted(base, "layout tables", "another order of one array's axes", place)
    assert bool(found.equivalent) == (letters.index("o") < letters.index("i"))


def test_pixels_are_judged_with_the_right_weights(base: Base) -> None:
    found = planted(base, "preprocessing", "mean off by 1e-4")
    assert (found.numbers, found.taps, found.named, found.field["allclose"]) == (True, True, True, False)
    assert "image_mean is" in found.diagnosis


@pytest.mark.parametrize("number", range(3))
def test_a_right_conversion_is_no_mutant(number: int) -> None:
    assert judge_correct(number, 0)[1] == ""


def outcome(**changes: object) -> Outcome:
    found = Outcome(
        Mutant("weights", "zeroed", "<b>&", 0, 0), "R14x1", True, True, True, "stem", True, True, "stem: 0", "", {}
    )
    return replace(
        found, field=dict.fromkeys(("allclose", "three logits", "Optimum", "cosine", "top-1"), False), **changes
    )  # type: ignore[arg-type]


def test_equivalent_mutants_are_no_part_of_a_share() -> None:
    found = report.row("all", [outcome(), outcome(numbers=False), outcome(numbers=False, equivalent="bytes")])
    assert (found.different, found.numbers, found.cells[2]) == (2, 1, "50.0 %")
    assert report.share(2999, 3000) == "99.97 %"
    assert report.share(99999, 100000) == "99.99 %"


def test_the_page_is_offline_and_escapes_what_it_shows() -> None:
    page = report.html([outcome(numbers=False)], 0)
    assert "&lt;b&gt;&amp;" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)


def test_outcomes_survive_a_campaign_that_is_killed(tmp_path: Path) -> None:
    line = json.dumps(outcome().to_dict())
    (tmp_path / "outcomes").write_text(f"{line}\n{line[:50]}")
    assert kept(tmp_path / "outcomes") == [outcome()]


def program(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mutants.run", *map(str, arguments)]
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **paths}
    )


@pytest.mark.long
def test_a_campaign_that_was_interrupted_prints_what_there_is_and_goes_on(tmp_path: Path) -> None:
    arguments = ("--count", 72, "--seed", 1, "--keep", tmp_path, "--json", tmp_path / "figures.json")
    process = program(*arguments)
    kept_there = tmp_path / "outcomes-1.jsonl"
    while not (kept_there.exists() and kept_there.stat().st_size) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "**all**" in output
    before = kept(kept_there)
    assert before
    again = program(*arguments)
    output, _ = again.communicate()
    assert again.returncode == 0, output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["all"]["mutants"] == 72
    assert figures["all"]["numbers"] == figures["all"]["everything"] == 72 - figures["all"]["equivalent"]
    assert kept(kept_there)[: len(before)] == before


@pytest.mark.long
def test_two_hundred_mutants_of_another_seed_are_killed_located_and_named(tmp_path: Path) -> None:
    process = program("--count", 216, "--seed", 11, "--keep", tmp_path, "--json", tmp_path / "figures.json")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = json.loads((tmp_path / "figures.json").read_text())["all"]
    different = found["mutants"] - found["equivalent"]
    assert found["numbers"] == found["everything"] == different
    assert found["located"] >= 0.95 * different
    assert found["named"] >= 0.9 * different


@pytest.mark.long
def test_forty_right_conversions_are_verified(tmp_path: Path) -> None:
    output, _ = program("--correct", 40, "--seed", 2, "--keep", tmp_path).communicate()
    assert "40 right conversions, 0 refused" in output
