"""Charts as inline SVG: they take their colours from the page, need no script, and stay sharp at any size."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = 8  # how many the page has; lines after them are told apart by dashes

_WIDTH, _HEIGHT = 360, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 40


@dataclass(frozen=True)
class Line:
    """Points in the order of x; a y that is not finite is left out. Points that are not joined stand by themselves."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True


def lines(
    series: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    mark: tuple[float, str] | None = None,
    x_ticks: Sequence[float] = (),
) -> str:
    """Lines with points where they have few, a legend below, and perhaps one x with a name to it.

    The axis of x goes from the first to the last of `x_ticks`; round numbers around the points where there are none.
    """
    points = [[(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)] for line in series]
    every = [point for line in points for point in line]
    xs, ys = zip(*every, strict=True)
    x_ticks, y_ticks = x_ticks or _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in y_ticks:
        _, y = at(x_ticks[0], tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, y = at(tick, y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{y + 15:.1f}" text-anchor="middle">{tick:g}</text>')
    if mark is not None:
        x, _ = at(mark[0], y_ticks[0])
        parts.append(f'<path class="mark" d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x + 4:.1f}" y="{_TOP + 10}">{html.escape(mark[1])}</text>')
    for index, line in enumerate(points):
        places = [at(x, y) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if path and series[index].joined:
            parts.append(f'<path class="line {_look(index)}" d="M{path}"/>')
        if len(places) < 8:
            parts += [f'<circle class="{_look(index)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in places]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    keys = "".join(
        f'<li><svg viewBox="0 0 28 8" class="key" aria-hidden="true"><path class="line {_look(index)}" d="M0 4H28"/>'
        f"</svg>{html.escape(line.label)}</li>"
        for index, line in enumerate(series)
    )
    return f'<p class="small">{html.escape(y_label)}</p>{_svg(parts, title, _HEIGHT)}<ul class="legend">{keys}</ul>'


def histogram(counts: Mapping[int, int], mean: float, title: str) -> str:
    """How often each score was given, and a line at the mean; a bar stands around its score."""
    height, bottom, left, right, top = 120, 20, 8, 8, 16
    most = max(1, *counts.values())
    step = (_WIDTH / 2 - left - right) / len(counts)
    first = min(counts)

    def across(score: float) -> float:
        return left + (score - first + 0.5) * step

    parts, above = [], []
    for score, count in sorted(counts.items()):
        tall = count / most * (height - top - bottom)
        x, y = across(score) - step * 0.4, height - bottom - tall
        parts.append(f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{tall:.1f}"/>')
        parts.append(f'<text x="{across(score):.1f}" y="{height - 6}" text-anchor="middle">{score}</text>')
        above.append(f'<text class="count" x="{across(score):.1f}" y="{y - 3:.1f}" text-anchor="middle">{count}</text>')
    parts += [f'<path class="mean" d="M{across(mean):.1f} {top - 6}V{height - bottom}"/>', *above]
    return _svg(parts, title, height, width=_WIDTH // 2)


def _svg(parts: Sequence[str], title: str, height: int, width: int = _WIDTH) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _look(index: int) -> str:
    """The classes of a line: its colour, and dashes once the colours are used up."""
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, of which the first and the last enclose the values."""
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (step * factor) <= 5)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(start, stop + 1)]
