"""The figures of a campaign: a table for the terminal, JSON, and one page without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutants.field import CHECKS
from mutants.mutant import FAMILIES, Outcome

TEMPLATE = "report.html.jinja"
LONGEST_LIST = 40
"""Survivors and mutants without a name that are printed one by one; the page has all."""


@dataclass(frozen=True)
class Row:
    """The figures of an operator, a family or a campaign. Equivalent mutants are counted apart."""

    name: str
    mutants: int
    equivalent: int
    numbers: int
    taps: int
    everything: int
    located: int
    named: int
    field: tuple[int, ...]
    """Killed by what the field uses, in the order of `CHECKS`."""

    @property
    def different(self) -> int:
        return self.mutants - self.equivalent

    @property
    def cells(self) -> list[str]:
        counts = (self.numbers, self.taps, self.everything, self.located, self.named, *self.field)
        return [str(self.mutants), str(self.equivalent), *(share(count, self.different) for count in counts)]


def share(count: int, total: int) -> str:
    """Return a percentage that is 100 % only if it is all."""
    if not total:
        return "–"
    if count == total:
        return "100 %"
    return f"{min(100 * count / total, 99.99):.2f} %" if count > 0.99 * total else f"{100 * count / total:.1f} %"


def row(name: str, outcomes: Sequence[Outcome]) -> Row:
    different = [item for item in outcomes if not item.equivalent]

    def count(attribute: str) -> int:
        return sum(getattr(item, attribute) for item in different)

    usual = tuple(sum(item.field[check] for item in different) for check in CHECKS)
    counted = {key: count(key) for key in ("numbers", "taps", "everything", "located", "named")}
    return Row(name, len(outcomes), len(outcomes) - len(different), field=usual, **counted)


def families(outcomes: Sequence[Outcome]) -> list[tuple[Row, list[Row]]]:
    """Return the row of every family, and those of the operators in it."""
    found = []
    for family in FAMILIES:
        own = [item for item in outcomes if item.mutant.family == family]
        names = sorted({item.mutant.operator for item in own})
        rows = [row(name, [item for item in own if item.mutant.operator == name]) for name in names]
        if own:
            found.append((row(family, own), rows))
    return found


def survivors(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the mutants that differ and that the numbers alone, or everything, let pass."""
    return [item for item in outcomes if not item.equivalent and not (item.numbers and item.everything)]


HEADER = ("mutants", "equivalent", "numbers", "taps", "everything", "located", "named", *CHECKS)


def text(outcomes: Sequence[Outcome]) -> str:
    """Return the table, as Markdown, and the survivors."""
    lines = [f"| family, operator | {' | '.join(HEADER)} |", "|---|" + "---:|" * len(HEADER)]
    for family, rows in families(outcomes):
        lines.append(f"| **{family.name}** | {' | '.join(family.cells)} |")
        lines += [f"| {item.name} | {' | '.join(item.cells)} |" for item in rows]
    lines.append(f"| **all** | {' | '.join(row('all', outcomes).cells)} |")
    for title, chosen in lists(outcomes).items():
        lines.append(f"\n{len(chosen)} {title}")
        lines += [f"- {line(item)}" for item in chosen[:LONGEST_LIST]]
    return "\n".join(lines)


def lists(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    different = [item for item in outcomes if not item.equivalent]
    return {
        "that survive the numbers alone, or everything": survivors(outcomes),
        "in another part than the one that is blamed": [item for item in different if not item.located],
        "without a name": [item for item in different if item.located and not item.named],
    }


def line(item: Outcome) -> str:
    mutant = item.mutant
    killed = ", ".join(name for name in ("numbers", "everything") if getattr(item, name)) or "nothing"
    return (
        f"{mutant.family}, {mutant.operator}, {mutant.place} ({item.about}; network {mutant.network}): "
        f"killed by {killed}; "
        f"expected in {item.expected}; {item.diagnosis[:200] or 'no diagnosis'}"
    )


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the figures, and every outcome."""

    def counted(item: Row) -> dict[str, Any]:
        return {**vars(item), "field": dict(zip(CHECKS, item.field, strict=True))}

    return {
        "checks": {name: words for name, (words, _) in CHECKS.items()},
        "all": counted(row("all", outcomes)),
        "families": [
            {**counted(family), "operators": [counted(item) for item in rows]} for family, rows in families(outcomes)
        ],
        "outcomes": [item.to_dict() for item in outcomes],
    }


def html(outcomes: Sequence[Outcome], seed: int) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(TEMPLATE).render(
        seed=seed,
        total=row("all", outcomes),
        families=families(outcomes),
        header=HEADER,
        checks={name: words for name, (words, _) in CHECKS.items()},
        lists=lists(outcomes),
        equivalent=[item for item in outcomes if item.equivalent],
        networks=len({item.mutant.network for item in outcomes}),
        share=share,
    )
