"""The errors of a verification through the depth of the network, drawn as SVG for a page of either colour scheme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from xml.etree import ElementTree

import numpy as np

from convert.reporting.text import by_run, worst
from convert.verification.results import Check

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

Key = TypeVar("Key")

SETTINGS: dict[Any, Any] = {
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
    **dict.fromkeys(("font.size", "legend.fontsize", "axes.labelsize", "ytick.labelsize"), 8),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    "svg.fonttype": "none",
    "svg.hashsalt": "bit-convert",
}
"""matplotlib's, beside its defaults."""
RUN_COLOURS = 8
COLOURS = ("ink", "line", "bad", *(f"run{number}" for number in range(RUN_COLOURS)))
"""Names in the style sheet, so that a plot is dark where the page is."""
MARKERS = "osD^PvX*hp<>"
DASHES = ((), (5, 1.5), (1, 1), (4, 1, 1, 1), (8, 2), (3, 1, 1, 1, 1, 1), (2, 1))
"""On and off, in line widths. Beside 12 markers and 8 colours, so that no two of many runs look alike."""
MARKS: dict[str, tuple[str | int, str, Callable[[Check], bool]]] = {
    "over its tolerance": ("o", "bad", lambda check: not check.passed),
    "not finite, at the edge": (6, "bad", lambda check: not math.isfinite(check.error)),
    "zero, at the edge": (7, "ink", lambda check: check.error == 0),
}
"""What is drawn on the points of a run: the marker, 6 and 7 being carets up and down, its colour, and where."""
SIZES = {"wide": (700, 280, 3), "narrow": (280, 290, 1)}
"""Of a drawing, in points before the page scales it: width, height above the legend, columns of that.
The page shows the one that fits."""
SPREAD = 0.6
"""Of the distance of two taps: so far apart the runs stand, many of which agree in all digits that show."""
LABEL_HEIGHT, LONGEST_LABEL = 9, 24
"""Of the name of a tap beside the axis: points, characters."""
DECADES = 30
"""Beyond ±30 a logarithm is not drawn."""


@dataclass(frozen=True)
class Series:
    """One run in a plot."""

    name: str
    style: int
    """The same in every plot for the same implementation and weights."""
    checks: dict[str, Check]
    """For each tap the one, of the inputs', that uses most of its tolerance."""


@dataclass(frozen=True)
class Plot:
    """The errors of one dtype in one mode, through depth."""

    id: str
    dtype: str
    mode: str
    checks: list[Check]
    series: list[Series]

    @cached_property
    def taps(self) -> dict[str, list[Check]]:
        """The checks of each, in the order of depth."""
        return _grouped(self.checks, lambda check: check.tap)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Powers of ten around all that a log scale can show, with room for what it cannot."""
        values = [value for check in self.checks for value in (check.error, check.tolerance)]
        powers = [math.log10(value) for value in values if 0 < value < math.inf] or [0.0]
        low, high = math.floor(min(powers)) - (0 in values), math.floor(max(powers)) + 2
        return 10.0 ** min(max(low, -DECADES), DECADES - 2), 10.0 ** min(max(high, 2 - DECADES), DECADES)

    def height(self, value: float) -> float:
        """Where it is drawn: within the limits."""
        low, high = self.limits
        return min(max(value, low), high) if math.isfinite(value) else high

    @property
    def drawings(self) -> list[Markup]:
        """An SVG element for each of the sizes."""
        from markupsafe import Markup

        return [Markup(_draw(self, name, *size)) for name, size in SIZES.items()]


def plots(checks: list[Check]) -> list[Plot]:
    """One for each dtype and mode, in the order of the checks."""
    styles = {name: style for style, name in enumerate(dict.fromkeys(_name(check) for check in checks))}
    found = _grouped(checks, lambda check: (check.dtype, check.mode))
    return [
        Plot(f"plot{count}", *key, same, [_series(run, styles) for run in by_run(same).values()])
        for count, (key, same) in enumerate(found.items(), 1)
    ]


def _grouped(checks: Sequence[Check], key: Callable[[Check], Key]) -> dict[Key, list[Check]]:
    groups: dict[Key, list[Check]] = {}
    for check in checks:
        groups.setdefault(key(check), []).append(check)
    return groups


def _name(check: Check) -> str:
    """Of its run, within a plot."""
    return check.implementation + (" on the source" if check.side == "source" else "")


def _series(checks: list[Check], styles: dict[str, int]) -> Series:
    name, taps = _name(checks[0]), _grouped(checks, lambda check: check.tap)
    return Series(name, styles[name], {tap: worst(same) for tap, same in taps.items()})


def _draw(plot: Plot, name: str, width: float, height: float, columns: int) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own settings are no part of the values
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        _draw_budgets(plot, axes)
        _draw_errors(plot, axes, width)
        _draw_axes(plot, axes, width)
        rows = math.ceil(len(axes.get_legend_handles_labels()[0]) / columns)
        figure.set_size_inches(width / 72, (height + 13 * rows) / 72)
        figure.legend(loc="outside lower left", ncols=columns, handlelength=4.5)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), plot, name)


def _colour(name: str) -> str:
    """What stands for a colour of the style sheet while matplotlib draws."""
    return f"#0101{COLOURS.index(name):02x}"


def _draw_budgets(plot: Plot, axes: Axes) -> None:
    """The greater and, where they differ, the lesser of the inputs' tolerances; what is over them is shaded."""
    tolerances = [[plot.height(check.tolerance) for check in checks] for checks in plot.taps.values()]
    least, greatest = [min(values) for values in tolerances], [max(values) for values in tolerances]
    edges, colour = [place - 0.5 for place in range(len(plot.taps) + 1)], _colour("bad")
    axes.stairs(greatest, edges, baseline=plot.limits[1], fill=True, color=colour, alpha=0.12)
    axes.stairs(greatest, edges, baseline=None, color=colour, linewidth=1.2, linestyle=(0, (4, 2)), label="budget")
    if least != greatest:
        label, dots = "budget of the stricter input", (0, (1, 1.5))
        axes.stairs(least, edges, baseline=None, color=colour, linewidth=0.9, linestyle=dots, label=label)


def _draw_errors(plot: Plot, axes: Axes, width: float) -> None:
    points: list[tuple[float, Check]] = []
    for order, series in enumerate(plot.series):
        aside, style = SPREAD * ((order + 0.5) / len(plot.series) - 0.5), series.style
        own = [(place + aside, series.checks[tap]) for place, tap in enumerate(plot.taps) if tap in series.checks]
        axes.plot(
            [place for place, _ in own],
            [plot.height(check.error) for _, check in own],
            color=_colour(f"run{style % RUN_COLOURS}"),
            marker=MARKERS[style % len(MARKERS)],
            markersize=4 if len(plot.taps) * 20 < width else 2.5,
            linestyle=(0, DASHES[style % len(DASHES)]),
            linewidth=0.8,
            label=series.name,
        )
        points += own
    for label, (marker, name, applies) in MARKS.items():
        if marked := [(place, plot.height(check.error)) for place, check in points if applies(check)]:
            face = "none" if marker == "o" else _colour(name)
            (line,) = axes.plot(*np.transpose(marked), marker=marker, linestyle="none", label=label, clip_on=False)
            line.set(color=_colour(name), markerfacecolor=face, markersize=8, markeredgewidth=1.4)


def _draw_axes(plot: Plot, axes: Axes, width: float) -> None:
    low, high = plot.limits
    every = math.ceil(len(plot.taps) * LABEL_HEIGHT / (width - 60))
    names = [re.sub("[^ -~]", "?", tap[:LONGEST_LABEL]) for tap in plot.taps]  # what any font and XML can say
    axes.set(yscale="log", ylim=(low, high), xlim=(-0.5, len(names) - 0.5), ylabel="relative L2 error")
    axes.set_xticks(range(0, len(names), every), names[::every], rotation=90, fontsize=7)
    powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
    shown = powers[:: math.ceil(len(powers) / 9)]
    axes.set_yticks([10.0**power for power in shown], [f"1e{power}" for power in shown])
    axes.minorticks_off()
    axes.grid(axis="y", color=_colour("line"), linewidth=0.5)
    blocks = [tap.split("/")[0] for tap in plot.taps]
    for place in range(1, len(blocks)):
        if blocks[place] != blocks[place - 1]:
            axes.axvline(place - 0.5, color=_colour("line"), linewidth=0.5, zorder=0)


def _inline(svg: str, plot: Plot, name: str) -> str:
    """A file of SVG as an element of the page: styles as attributes, which the policy allows, and ids of its own."""
    root, used = ElementTree.fromstring(svg), set(re.findall(r"#([^\")]+)[\")]", svg))
    colours = {"#000000": "var(--soft)"} | {_colour(colour): f"var(--{colour})" for colour in COLOURS}
    for element in list(root.iter()):
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        element.text, element.tail = (element.text or "").strip(), None
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        style = [declaration.split(":", 1) for declaration in attributes.pop("style", "").split(";") if declaration]
        attributes |= {key.strip(): colours.get(value.strip(), value.strip()) for key, value in style}
        element.attrib.clear()
        for key, value in attributes.items():
            if key in ("id", "href", "clip-path"):
                value = re.sub(r"^(url\(#|#|)", rf"\1{plot.id}-{name}-", value)
            if key != "font-family" and (key != "id" or attributes["id"] in used):
                element.set(key, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split())))
    labels = {"role": "img", "aria-labelledby": f"{plot.id}-title {plot.id}-summary"}
    root.attrib = {"class": name, "viewBox": root.attrib["viewBox"], **labels}
    return ElementTree.tostring(root, "unicode")
