"""Small charts as SVG text, whose colours follow the page's."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NamedTuple

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#a05a2c")
"""Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/, without those that vanish on black or
white, and two more."""

Points = Sequence[tuple[float, float]]
_LETTER = 6.6  # the widest that a letter of 11 pixels is on average
_WIDTH = 350  # fits a telephone, and three side by side a page


class Look(NamedTuple):
    """How a curve is drawn.

    Args:
        colour: Its colour.
        dashes: Lengths of its dashes and gaps in pixels, "" for none.
    """

    colour: str
    dashes: str = ""

    @property
    def stroke(self) -> str:
        """The attributes of a line."""
        return f'stroke="{self.colour}"' + (f' stroke-dasharray="{self.dashes}"' if self.dashes else "")


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Args:
        label: What it stands for.
        value: Its length, in the chart's unit; None for not measured.
        note: What is written behind it.
        kind: Whether it was ``kept``, or ``differs`` in being what another rule would have kept, or is an ``other``.
        half_width: Half the width of the band of noise around its end, or None.
    """

    label: str
    value: float | None
    note: str = ""
    kind: Literal["kept", "differs", "other"] = "other"
    half_width: float | None = None


def line_chart(
    title: str,
    curves: Mapping[str, Points],
    looks: Mapping[str, Look] | None = None,
    marks: Sequence[float] = (),
    size: tuple[int, int] = (_WIDTH, 230),
) -> str:
    """Draws curves over the epochs.

    Args:
        title: What the numbers are.
        curves: The points of each curve, (epoch, value).
        looks: How each is drawn; None for one colour after the other.
        marks: Epochs at which a dashed line stands, because something was decided after them.
        size: Width and height in pixels.
    """
    width, height = size
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    looks = looks or dict(zip(curves, map(Look, itertools.cycle(COLOURS)), strict=False))
    xs = _ticks(min(x for x, _ in points), max(x for x, _ in points), whole=True)
    ys = _ticks(min(y for _, y in points), max(y for _, y in points))
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    if first == last:
        first, last = xs[0], xs[-1]
    left = 14 + _LETTER * max(len(_text(y)) for y in ys)
    legend, rows = _legend(list(curves), width)
    top, bottom = 30.0, height - 38.0 - 16 * rows

    def across(x: float) -> float:
        return left + (x - first) / (last - first) * (width - left - 16)

    def down(y: float) -> float:
        return bottom - (y - ys[0]) / (ys[-1] - ys[0]) * (bottom - top)

    parts = [f'<text class="title" x="8" y="16">{escape(title)}</text>']
    for y in ys:
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{width - 16}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{down(y) + 4:.1f}" text-anchor="end">{_text(y)}</text>')
    level = f'y="{bottom + 15:.1f}" text-anchor="middle"'
    parts += [f'<text class="tick" x="{across(x):.1f}" {level}>{_text(x)}</text>' for x in xs if first <= x <= last]
    parts.append(f'<text class="tick" x="{width - 16}" y="{bottom + 29:.1f}" text-anchor="end">epochs</text>')
    for x in (x for x in marks if first <= x <= last):
        place = f'x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{top:.1f}" y2="{bottom:.1f}"'
        parts.append(f'<line class="mark" {place}><title>a decision after {x:g} epochs</title></line>')
    for name, curve in curves.items():
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in curve)
        if len(curve) > 1:
            parts.append(f'<polyline points="{path}" fill="none" {looks[name].stroke} stroke-width="1.8"/>')
        x, y = curve[-1]
        tip = f"<title>{escape(name)}: {y:.6g} after {x:g} epochs</title>"
        parts.append(
            f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.6" fill="{looks[name].colour}">{tip}</circle>'
        )
    for name, x, row in zip(curves, *legend, strict=True):
        y = height - 16 * (rows - row) + 4
        line = f'x1="{x:.1f}" x2="{x + 18:.1f}" y1="{y - 3}" y2="{y - 3}"'
        parts.append(f'<line {line} {looks[name].stroke} stroke-width="2.4"/>')
        parts.append(f'<text class="tick" x="{x + 23:.1f}" y="{y + 1}">{escape(name)}</text>')
    return _svg(width, height, title, parts)


def bar_chart(title: str, bars: Sequence[Bar], width: int = _WIDTH) -> str:
    """Draws a bar for each of some things, those below zero to the left.

    Args:
        title: What the lengths are.
        bars: The bars.
        width: Width in pixels.
    """
    left = 16 + _LETTER * max(len(bar.label) for bar in bars)
    right = 12 + _LETTER * max(len(bar.note) for bar in bars)
    ends = [0.0]
    for bar in bars:
        if bar.value is not None:
            ends += [bar.value - (bar.half_width or 0), bar.value + (bar.half_width or 0)]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1.0

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    height = 30 + 20 * len(bars)
    parts = [f'<text class="title" x="8" y="16">{escape(title)}</text>']
    for i, bar in enumerate(bars):
        y = 28 + 20 * i
        parts.append(f'<text class="tick" x="{left - 6:.1f}" y="{y + 11}" text-anchor="end">{escape(bar.label)}</text>')
        if bar.value is not None:
            x, length = min(across(0.0), across(bar.value)), abs(across(bar.value) - across(0.0))
            parts.append(f'<rect class="{bar.kind}" x="{x:.1f}" y="{y}" width="{max(length, 1.0):.1f}" height="14"/>')
        if bar.value is not None and bar.half_width:
            a, b = across(bar.value - bar.half_width), across(bar.value + bar.half_width)
            parts.append(
                f'<rect class="noise" x="{a:.1f}" y="{y + 3}" width="{b - a:.1f}" height="8">'
                "<title>two standard errors of the lead to either side</title></rect>"
            )
        parts.append(f'<text class="tick" x="{width - right + 8:.1f}" y="{y + 11}">{escape(bar.note)}</text>')
    parts.append(f'<line class="axis" x1="{across(0):.1f}" x2="{across(0):.1f}" y1="24" y2="{height - 2}"/>')
    return _svg(width, height, title, parts)


def dot_chart(title: str, rows: Mapping[str, Sequence[float]], width: int = _WIDTH) -> str:
    """Draws the values of several groups as dots, and the mean of each as an upright line.

    Args:
        title: What the values are.
        rows: The values of each group.
        width: Width in pixels.
    """
    ticks = _ticks(min(map(min, rows.values())), max(map(max, rows.values())))

    def across(value: float) -> float:
        return 20 + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (width - 44)

    height = 52 + 36 * len(rows)
    parts = [f'<text class="title" x="8" y="16">{escape(title)}</text>']
    for tick in ticks:
        x = f"{across(tick):.1f}"
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="26" y2="{height - 22}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 8}" text-anchor="middle">{_text(tick)}</text>')
    for i, (name, values) in enumerate(rows.items()):
        y, mean = 54 + 36 * i, statistics.fmean(values)
        letters = int((width - 16) / _LETTER)
        shown = name if len(name) <= letters else f"{name[: letters - 1]}…"
        parts.append(f'<text class="tick" x="8" y="{y - 13}">{escape(shown)}</text>')
        parts += [
            f'<circle class="dot" cx="{across(value):.1f}" cy="{y}" r="4"><title>{value:.6g}</title></circle>'
            for value in values
        ]
        x = f"{across(mean):.1f}"
        parts.append(f'<line class="mean" x1="{x}" x2="{x}" y1="{y - 8}" y2="{y + 8}"/>')
    return _svg(width, height, title, parts)


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg class="chart" role="img" aria-label="{escape(title)}" {box}>{"".join(parts)}</svg>'


def _legend(names: Sequence[str], width: int) -> tuple[tuple[list[float], list[int]], int]:
    """Returns where each name of a legend begins, its row, and the number of rows."""
    xs, rows, x, row = [], [], 8.0, 0
    for name in names:
        needed = 33 + _LETTER * len(name)
        if x + needed > width - 8 and x > 8:
            x, row = 8.0, row + 1
        xs.append(x)
        rows.append(row)
        x += needed
    return (xs, rows), row + 1


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Returns about five round numbers that enclose a range."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = (low - 1, high + 1) if whole else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(f for f in (1, 2, 5, 10) if (high - low) / (step * f) <= 5)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _text(value: float) -> str:
    return f"{value:.4g}"
