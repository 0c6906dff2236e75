"""Curves as paths of SVG: scales, ticks, labels at their ends, and fewer points where there are too many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apr.report.recorded import number

# The coordinates of a chart's area. The page stretches it to any size; lines keep their width.
WIDTH, HEIGHT = 1000, 300
# Longer runs are drawn in so many parts, each by the records with its lowest and highest values: a spike of
# one step among 100,000 stays, and the page is smaller than a megabyte.
_PARTS = 250
_LOG_RANGE = (
    10.0  # losses that differ by more are drawn on a logarithmic scale, where the small ones are seen
)
_MOST_DOTS = 40
_LABEL_PIXELS = 15  # a line of text

Points = Sequence[tuple[float, float | None]]


def thinned(records: Sequence[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return at most some hundred of the records: those with the extremes of each name, and the two ends."""
    if len(records) <= 2 * len(names) * _PARTS:
        return list(records)
    kept = {0, len(records) - 1}
    for part in range(_PARTS):
        indices = range(part * len(records) // _PARTS, (part + 1) * len(records) // _PARTS)
        for name in names:
            values = {i: value for i in indices if (value := number(records[i].get(name))) is not None}
            if values:
                kept |= {min(values, key=values.__getitem__), max(values, key=values.__getitem__)}
            if len(values) < len(indices):  # a loss that is not a number leaves a gap in the curve
                kept.add(next(i for i in indices if i not in values))
    return [records[i] for i in sorted(kept)]


@dataclass(frozen=True)
class Curve:
    """One curve: (x, y) pairs, with None for a y that is not a number."""

    label: str
    kind: str
    """Class of the page's style, such as `train`."""
    points: Points
    drawn: bool = True
    """False for values that only hovering shows."""
    labeled: bool = True
    """Whether its name stands at its end."""
    hovers: bool = True
    dots: bool = False

    @property
    def values(self) -> list[float]:
        """The y that are numbers."""
        return [y for _, y in self.points if y is not None]


@dataclass(frozen=True)
class Chart:
    """Curves over common axes, ready for the page. Places of text are in percent of the area."""

    title: str
    axes: str
    """What the axes show, and on which scale."""
    height: int
    """Pixels."""
    description: str
    paths: list[tuple[str, str]]
    """Class and data of each path."""
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    labels: list[tuple[float, str, str]]
    """Place from the top, class and text of what stands at the ends of curves."""
    hover: dict[str, Any]
    """What the page's script needs."""


def chart(
    title: str, unit: str, curves: Sequence[Curve], x: tuple[str, float], *, height: int, from_zero: bool
) -> Chart | None:
    """Draw curves over common axes; None if no curve has a value.

    Args:
        title: what the y axis shows.
        unit: its unit.
        curves: the curves.
        x: what the x axis shows, and its end.
        height: height of the chart in pixels.
        from_zero: whether the y axis starts at 0. Otherwise it is logarithmic if the values differ much.
    """
    values = [y for curve in curves for y in curve.values]
    if not values:
        return None
    lowest, highest = min(values), max(values)
    log = not from_zero and lowest > 0 and highest / lowest > _LOG_RANGE
    low, high = _padded(lowest, highest, from_zero=from_zero, log=log)
    x_title, last = x

    def across(x: float) -> float:
        return round(x / last * WIDTH, 1)

    def down(y: float) -> float:
        if log:
            y, bottom, top = math.log(y), math.log(low), math.log(high)
        else:
            bottom, top = low, high
        part = (y - bottom) / (top - bottom)
        return round((1 - part) * HEIGHT, 1)

    def percent(y: float) -> float:
        return round(down(y) / HEIGHT * 100, 2)

    paths, ends = [], []
    for curve in curves:
        if not curve.values:
            continue
        placed = [(across(x), None if y is None else down(y)) for x, y in curve.points]
        if curve.drawn:
            paths.append((curve.kind, _line(placed)))
            if (curve.dots and len(placed) <= _MOST_DOTS) or len(curve.values) == 1:
                paths.append(
                    (f"{curve.kind} dots", "".join(f"M{x} {y}h0" for x, y in placed if y is not None))
                )
        if curve.labeled and curve.drawn:
            end = curve.values[-1]
            text = f"{end:#.4g}" if 1 <= abs(end) < 1000 else shown(end)
            ends.append((percent(end), curve.kind, f"{curve.label} {text}"))
    return Chart(
        title,
        f"{unit}{', logarithmic,' if log else ''} over {x_title}".strip(),
        height,
        "; ".join(_words(curve) for curve in curves if curve.values and curve.hovers),
        paths,
        [(round(x / last * 100, 2), shown(x)) for x in _ticks(0, last, 4)],
        [(percent(y), shown(y)) for y in (_log_ticks(low, high) if log else _ticks(low, high, 5))],
        _apart(ends, _LABEL_PIXELS / height * 100),
        {
            "last": last,
            "x": x_title.removesuffix("s"),
            "curves": [
                {
                    "label": curve.label,
                    "x": [x for x, _ in curve.points],
                    "y": [None if y is None else float(f"{y:.6g}") for _, y in curve.points],
                }
                for curve in curves
                if curve.hovers
            ],
        },
    )


def shown(value: float) -> str:
    """Return a number with the digits that a person reads: 1.5 M, 2,912, 1.638, 0.002, 5e-05."""
    if value and not 1e-4 <= abs(value) < 1e12:
        return f"{value:.3g}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.4g} M"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _words(curve: Curve) -> str:
    values = curve.values
    return f"{curve.label} from {shown(values[0])} to {shown(values[-1])}, lowest {shown(min(values))}"


def _line(points: Sequence[tuple[float, float | None]]) -> str:
    """Return the data of a path; it is interrupted where a value is missing."""
    parts, command = [], "M"
    for x, y in points:
        if y is None:
            command = "M"
            continue
        parts.append(f"{command}{x} {y}")
        command = "L"
    return "".join(parts)


def _padded(low: float, high: float, *, from_zero: bool, log: bool) -> tuple[float, float]:
    """Return the ends of the y axis, so that curves do not touch them."""
    if log:
        return low / 1.15, high * 1.15
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (min(0.0, low) if from_zero else low - room), high + room


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round numbers between two values."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten between two values, or only the powers if these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [
        factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high
    ]


def _apart(ends: list[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Move labels down until none covers another, and up again where they would leave the chart."""
    placed: list[tuple[float, str, str]] = []
    for at, kind, text in sorted(ends):
        least = placed[-1][0] + gap if placed else 0.0
        placed.append((max(at, least), kind, text))
    over = max(0.0, placed[-1][0] - 100) if placed else 0.0
    return [(round(at - over, 2), kind, text) for at, kind, text in placed]
