"""Geometry of the report's figures: ticks, thinned curves, SVG paths and histogram bars, as plain numbers.

Figures are laid out by the page's CSS; text is never part of an SVG, so it keeps its size on any screen. Left
out: colours and markup (the templates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from chuxin.report.bins import SCALES

Point = tuple[float, float]

CURVE_POINTS = 240
"""Points a curve is thinned to: two screen pixels each at full width, and 4 kB of page."""


class Tick(NamedTuple):
    """A position on an axis in percent of its length, and its label."""

    at: float
    label: str


class Curve(NamedTuple):
    """A loss curve in a box of 1000 × 1000, y downwards, with its axes."""

    trace: str
    """SVG path of the thinned losses."""
    trend: str
    """SVG path of their running mean."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    steps: int
    first: float
    last: float
    """The trend's first and last value."""


class Bar(NamedTuple):
    """One bin of a histogram."""

    label: str
    count: int
    height: float
    """Percent of the highest bin."""


def nice_step(span: float, ticks: int) -> float:
    """Returns the smallest of 1, 2, 2.5, 5 × 10^n that cuts a span into at most `ticks` parts."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / ticks))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= ticks + 1e-9)


def axis(low: float, high: float, ticks: int) -> tuple[float, float, list[float]]:
    """Returns the round numbers that enclose low and high, and the tick values between them."""
    step = nice_step(high - low, ticks)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    stop = max(stop, start + 1)
    return start * step, stop * step, [i * step for i in range(start, stop + 1)]


def thin(points: Sequence[Point], limit: int = CURVE_POINTS) -> list[Point]:
    """Returns at most `limit` points, each the mean of neighbouring ones."""
    if len(points) <= limit:
        return list(points)
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    groups = [points[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def running_mean(points: Sequence[Point], width: int) -> list[Point]:
    """Returns the points with y replaced by the mean over a centred window, narrower at the ends."""
    half = width // 2
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def path(points: Sequence[Point], x_range: Point, y_range: Point) -> str:
    """Returns an SVG path through points in a box of 1000 × 1000, y downwards."""
    (x_low, x_high), (y_low, y_high) = x_range, y_range
    x_scale, y_scale = 1000 / ((x_high - x_low) or 1), 1000 / ((y_high - y_low) or 1)
    places = [f"{(x - x_low) * x_scale:.0f} {1000 - (y - y_low) * y_scale:.0f}" for x, y in points]
    return "M" + "L".join(places)


def curve(losses: Sequence[tuple[int, float]]) -> Curve:
    """Returns the figure of one training stage's losses; there must be one at least."""
    points = thin([(float(step), loss) for step, loss in losses])
    trend = running_mean(points, max(1, len(points) // 20))
    low, high, y_values = axis(min(y for _, y in points), max(y for _, y in points), 5)
    x_high = max(x for x, _ in losses)
    step = nice_step(x_high, 5)
    x_values = [i * step for i in range(int(x_high / step + 1e-9) + 1)]
    return Curve(
        trace=path(points, (0, x_high), (low, high)),
        trend=path(trend, (0, x_high), (low, high)),
        x_ticks=[Tick(100 * x / (x_high or 1), f"{x:,.0f}") for x in x_values],
        y_ticks=[Tick(100 * (y - low) / (high - low), f"{y:.4g}") for y in y_values],
        steps=int(x_high),
        first=trend[0][1],
        last=trend[-1][1],
    )


def histogram(counts: Sequence[int]) -> list[Bar]:
    """Returns the bars of power-of-two bins, without the empty ones at both ends."""
    return _bars(counts, _filled([counts]), _length_label)


def score_histograms(kind: str, counts: Mapping[str, Sequence[int]]) -> dict[str, list[Bar]]:
    """Returns the bars of one scale's bins by name, all over the same range of scores, each as high as the others."""
    shown = _filled(list(counts.values()))
    low, width, _ = SCALES[kind]
    return {name: _bars(own, shown, lambda i: f"{low + i * width:.4g}") for name, own in counts.items()}


def _filled(series: Sequence[Sequence[int]]) -> range:
    filled = [i for counts in series for i, count in enumerate(counts) if count]
    return range(min(filled), max(filled) + 1) if filled else range(0)


def _bars(counts: Sequence[int], shown: range, label: Callable[[int], str]) -> list[Bar]:
    most = max(counts, default=0) or 1
    return [Bar(label(i), counts[i], 100 * counts[i] / most) for i in shown]


def _length_label(i: int) -> str:
    low = 0 if i == 0 else 2**i
    return f"{low // 1024}k" if low >= 1024 else str(low)
