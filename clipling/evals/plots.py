"""Plots as inline SVG. Colours are CSS variables, so one picture is readable on light and dark paper; text stays text."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# matplotlib draws with stand-in colours that no plot would use; each is then replaced by a variable of report.css.
INK, FAINT, PAPER = "#010203", "#010204", "#010205"
_VARIABLES = {INK: "var(--ink-soft)", FAINT: "var(--rule)", PAPER: "var(--paper)"}
COLOURS = 10


@dataclass(frozen=True)
class Line:
    """One curve: `x` and `y` of equal length, the colour number of its arm, `thin` for a single seed among several."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int
    thin: bool = False


@dataclass(frozen=True)
class Whisker:
    """One row of a difference plot: the mean, its interval where known, and the value of every seed."""

    label: str
    value: float
    low: float | None
    high: float | None
    seeds: Sequence[float]
    colour: int


def curves(lines: Sequence[Line], *, name: str, x: str, zero: bool = False) -> str:
    """Curves over a common x as an SVG element; `name` is its description and must differ between plots of one page."""

    def draw(axes: Any) -> None:
        for line in lines:
            axes.plot(
                line.x,
                line.y,
                color=_stand_in(line.colour),
                linewidth=0.9 if line.thin else 1.9,
                alpha=0.45 if line.thin else 1,
                solid_capstyle="round",
            )
        if zero:
            axes.axhline(0, color=INK, linewidth=0.7)
        axes.set_xlabel(x)
        axes.xaxis.set_major_formatter(_short)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.margins(x=0.02)

    return _svg(draw, name, (5.2, 3.1))


def whiskers(rows: Sequence[Whisker], *, name: str, x: str) -> str:
    """Differences from the baseline with their intervals, one row an arm, the line of no difference marked."""

    def draw(axes: Any) -> None:
        for place, row in enumerate(reversed(rows)):
            colour = _stand_in(row.colour)
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [place, place], color=colour, linewidth=5, alpha=0.28, solid_capstyle="round")
            if len(row.seeds) > 1:
                below = [place - 0.28] * len(row.seeds)
                axes.plot(row.seeds, below, "|", color=colour, markersize=5, markeredgewidth=1.1)
            axes.plot([row.value], [place], "o", color=colour, markersize=6.5, markeredgecolor=PAPER, markeredgewidth=1.2)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row.label for row in reversed(rows)])
        axes.tick_params(axis="y", length=0, pad=8)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.margins(x=0.12)
        axes.set_xlabel(x)
        axes.grid(axis="x", color=FAINT, linewidth=0.7)

    return _svg(draw, name, (5.2, 0.7 + 0.36 * len(rows)))


def smooth(values: Sequence[float], width: int) -> list[float]:
    """A centred running mean over `width` values that leaves out what is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    half = max(0, width // 2)
    windows = (numbers[max(0, i - half) : i + half + 1] for i in range(len(numbers)))
    return [float(w[np.isfinite(w)].mean()) if np.isfinite(w).any() else float("nan") for w in windows]


def mean_line(curves_of_seeds: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], list[float]]:
    """The mean over seeds at the x values that all seeds have."""
    tables: list[Mapping[float, float]] = [dict(zip(x, y)) for x, y in curves_of_seeds]
    common = sorted(set.intersection(*(set(t) for t in tables)))
    return common, [float(np.mean([t[at] for t in tables])) for at in common]


def colour(number: int) -> str:
    """The CSS colour of an arm."""
    return f"var(--arm-{number % COLOURS})"


def svg(draw: Callable[[Any], None], name: str, inches: tuple[float, float]) -> str:
    """What `draw` puts on matplotlib axes, as an SVG element of this page's look, for plots that are drawn elsewhere.

    Its colours are `stand_in(number)`, INK, FAINT and PAPER; `name` must differ between plots of one page.
    """
    with warnings.catch_warnings():
        # Text stays text: a glyph that matplotlib's own font lacks is drawn by the reader's.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        return _svg(draw, name, inches)


def stand_in(number: int) -> str:
    """What to draw with for a model of this colour number."""
    return _stand_in(number)


def _stand_in(number: int) -> str:
    return f"#0a0b{number % COLOURS:02x}"


def _short(value: float, _place: int) -> str:
    """12,000 as `12 k`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if abs(value) >= 1e3 else f"{value:g}"


def _svg(draw: Callable[[Any], None], name: str, inches: tuple[float, float]) -> str:
    # hashsalt: ids inside the SVG are the same on every machine and differ between plots.
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "text.color": INK, "text.parse_math": False}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=inches, layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.tick_params(colors=INK, labelcolor=INK, length=0, labelsize=8.5)
        axes.xaxis.label.set_color(INK)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The bare element of matplotlib's file: no prolog, no metadata, no fixed size, no fonts of its own, our colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    head, body = svg[: svg.index(">") + 1], svg[svg.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([0-9.]+px) [^;\"]*", r"font-size: \1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    svg = f'<svg class="plot" role="img" aria-label="{html.escape(name)}" xmlns:xlink="http://www.w3.org/1999/xlink" {box.group()}>' + body
    for number in range(COLOURS):
        svg = svg.replace(_stand_in(number), colour(number))
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
