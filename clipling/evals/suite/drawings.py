"""Kinds of plots that the report of a suite needs beside those of `clipling.evals.plots`. They know no results."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from clipling.evals.plots import FAINT, INK, PAPER, Whisker, stand_in, svg

WIDTH = 4.4  # inches: half a page wide, labels are about 11 px
MOST_LETTERS = 26


@dataclass(frozen=True)
class Series:
    """Values of one model (or one kind), None where there is none, in the colour with this number; -1 is ink.

    look: "full" and "hollow" dots, "dashed" lines.
    """

    values: Sequence[float | None]
    colour: int
    look: Literal["full", "hollow", "dashed"] = "full"


@dataclass(frozen=True)
class Spot:
    """A point of a scatter with the name that stands beside it."""

    label: str
    x: float
    y: float
    colour: int


def short(text: str, most: int = MOST_LETTERS) -> str:
    """A label that fits beside a plot: no control characters (which SVG forbids), and at most `most` letters."""
    clean = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return clean if len(clean) <= most else clean[: most - 1].rstrip() + "…"


def differences(rows: Sequence[Whisker], *, name: str, x: str) -> str:
    """As `clipling.evals.plots.whiskers`, but for many rows: closer, and labels that are cut."""

    def draw(axes: Any) -> None:
        for place, row in enumerate(reversed(rows)):
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=stand_in(row.colour), linewidth=5, alpha=0.28, solid_capstyle="round")
            _marks(axes, [row.value], [place], Series([], row.colour), zorder=5)
        axes.axvline(0, color=INK, linewidth=0.9)
        _rows(axes, [row.label for row in rows])
        axes.set_xlabel(x)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="x", color=FAINT, linewidth=0.7)

    return svg(draw, name, (WIDTH, 0.62 + 0.25 * len(rows)))


def dots(labels: Sequence[str], series: Sequence[Series], *, name: str, x: str, joined: bool = False, letters: int = MOST_LETTERS) -> str:
    """A row a label, a dot a series; `joined` ties the dots of a row together."""

    def draw(axes: Any) -> None:
        places = range(len(labels) - 1, -1, -1)
        for place, i in zip(places, range(len(labels))):
            known = [v for s in series if (v := s.values[i]) is not None]
            if known:
                ends = (min(known), max(known)) if joined else (0, 1)
                transform = axes.transData if joined else axes.get_yaxis_transform()
                axes.plot(ends, [place, place], color=FAINT, linewidth=3 if joined else 0.7, transform=transform, zorder=1)
        for number, s in enumerate(series):
            points = [(v, place) for v, place in zip(s.values, places) if v is not None]
            # The first model lies on top: it is the one that the page is about.
            _marks(axes, [p[0] for p in points], [p[1] for p in points], s, zorder=20 - number)
        _rows(axes, labels, letters)
        axes.set_xlabel(x)
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(6))

    return svg(draw, name, (WIDTH, 0.62 + 0.225 * len(labels)))


def bars(labels: Sequence[str], series: Sequence[Series], *, name: str, x: str, line: float | None, marks: Series | None = None) -> str:
    """Bars from 0 in groups, a group a label; `line` marks chance, `marks` a baseline of each group by a tick of ink."""
    height = 0.78 / max(1, len(series))

    def draw(axes: Any) -> None:
        for row in range(len(labels)):
            place = len(labels) - 1 - row
            for number, s in enumerate(series):
                at = place + 0.39 - height * (number + 0.5)
                if s.values[row] is not None:
                    axes.barh(at, s.values[row], height=height * 0.82, color=_colour(s), linewidth=0)
            if marks is not None and marks.values[row] is not None:
                axes.plot([marks.values[row]] * 2, [place - 0.44, place + 0.44], color=INK, linewidth=2)
        if line is not None:
            axes.axvline(line, color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
        _rows(axes, labels)
        axes.set_xlim(left=0)
        axes.set_xlabel(x)

    return svg(draw, name, (WIDTH, 0.6 + (0.2 + 0.15 * len(series)) * len(labels)))


def trend(at: Sequence[float], series: Sequence[Series], *, name: str, x: str, zero: bool = True, log: str = "", ticks: bool = True) -> str:
    """Lines over common x values; from 0 on, unless `zero` is false. `log` is "", "x" or "y"; `ticks` marks every x."""

    def draw(axes: Any) -> None:
        for number, s in enumerate(series):
            points = [(a, v) for a, v in zip(at, s.values) if v is not None]
            style: Any = (0, (4, 2.5)) if s.look == "dashed" else "-"
            column, heights = [p[0] for p in points], [p[1] for p in points]
            axes.plot(column, heights, color=_colour(s), linewidth=1.7, linestyle=style, zorder=20 - number)
            if ticks:
                _marks(axes, column, heights, s, zorder=20 - number)
        if "x" in log:
            _logarithmic(axes, "x")
        if "y" in log:
            _logarithmic(axes, "y")
        elif zero:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
        if ticks:
            axes.set_xticks(list(at), [f"{a:g}" for a in at])
        axes.set_xlabel(x)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.margins(x=0.03)

    return svg(draw, name, (WIDTH, 2.8))


def reliability(before: Sequence[dict[str, float]], after: Sequence[dict[str, float]], colour: int, *, name: str) -> str:
    """Accuracy by confidence, percent, with the intervals of the bins: hollow before scaling, full after it."""

    def draw(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=INK, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        for curve, look, number in ((before, "hollow", -1), (after, "full", colour)):
            x, y = ([100 * bin_[key] for bin_ in curve] for key in ("confidence", "accuracy"))
            s = Series(y, number, look)  # type: ignore[arg-type]
            for a, bin_ in zip(x, curve):
                axes.plot([a, a], [100 * bin_["low"], 100 * bin_["high"]], color=_colour(s), linewidth=4, alpha=0.22, zorder=2)
            axes.plot(x, y, color=_colour(s), linewidth=1.1, alpha=0.7, zorder=3)
            _marks(axes, x, y, s, zorder=4)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.set_xlabel("confidence, percent")
        axes.grid(axis="y", color=FAINT, linewidth=0.7)

    return svg(draw, name, (WIDTH, 3.7))


def steps(edges: Sequence[float], series: Sequence[Series], *, name: str, x: str) -> str:
    """Histograms over common edges [n + 1], as shares of their own total."""

    def draw(axes: Any) -> None:
        for s in series:
            total = sum(v or 0 for v in s.values) or 1
            shares = [100 * (v or 0) / total for v in s.values]
            if s.look == "full":
                axes.stairs(shares, edges, fill=True, color=_colour(s), alpha=0.25)
            axes.stairs(shares, edges, color=_colour(s), linewidth=1.6, linestyle=(0, (3, 1.5)) if s.look == "dashed" else "-")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)

    return svg(draw, name, (WIDTH, 2.3))


def scatter(spots: Sequence[Spot], *, name: str, x: str) -> str:
    """Points with their names; x is logarithmic where it spans more than a factor of 5."""

    def draw(axes: Any) -> None:
        column = [spot.x for spot in spots]
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if min(column) > 0 and max(column) / min(column) > 5:
            _logarithmic(axes, "x")
        middle = (min(column) * max(column)) ** 0.5 if min(column) > 0 else sum(column) / len(column)
        for spot in spots:
            _marks(axes, [spot.x], [spot.y], Series([], spot.colour), zorder=5, size=7)
            right = spot.x <= middle
            axes.annotate(
                short(spot.label, 22), (spot.x, spot.y), (8 if right else -8, 0), textcoords="offset points",
                ha="left" if right else "right", va="center", color=INK, fontsize=8.5,
            )  # fmt: skip
        axes.set_xlabel(x)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.margins(x=0.12, y=0.12)

    return svg(draw, name, (WIDTH, 2.9))


def _colour(series: Series) -> str:
    return INK if series.colour < 0 else stand_in(series.colour)


def _marks(axes: Any, x: Sequence[float], y: Sequence[float], series: Series, *, zorder: int, size: float = 6) -> None:
    colour = _colour(series)
    face, edge = (PAPER, colour) if series.look == "hollow" else (colour, PAPER)
    size = size - 1 if series.look == "hollow" else size + 0.5  # the edge of a full dot is paper
    axes.plot(x, y, "o", markersize=size, color=face, markeredgecolor=edge, markeredgewidth=1.2, zorder=zorder)


def _logarithmic(axes: Any, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers: matplotlib's own are TeX, which is not parsed here."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda v, _place: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def _rows(axes: Any, labels: Sequence[str], letters: int = MOST_LETTERS) -> None:
    axes.set_yticks(range(len(labels)), [short(label, letters) for label in reversed(labels)])
    axes.tick_params(axis="y", length=0, pad=8)
    axes.set_ylim(-0.7, len(labels) - 0.3)
