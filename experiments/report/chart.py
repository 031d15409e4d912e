"""The search as one inline SVG: attempts as points, parents as lines, the best so far as a step line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

from verifier.verdict import Record

WIDTH, HEIGHT, LEFT, RIGHT, TOP, RAIL = 1080, 320, 64, 16, 16, 288
"""Pixels of the view box; `RAIL` is the height of the line on which failed attempts lie."""


class Point(Record):
    """One ended attempt. `score` is log speed-up, None when it failed."""

    id: str
    parents: tuple[str, ...]
    status: str
    score: float | None
    leads: bool = True
    """It may be the best: its score is an estimate in a run of estimates, or confirmed."""


def draw(points: Sequence[Point]) -> Markup:
    """SVG text for `points` in the order of their ends. Empty input gives an empty frame."""
    scores = [p.score for p in points if p.score is not None]
    low, high = (min([*scores, 0.0]), max([*scores, 0.1])) if scores else (0.0, 1.0)
    at = {p.id: (_x(i, len(points)), _y(p.score, low, high)) for i, p in enumerate(points)}
    parts = [*_grid(low, high), *_edges(points, at), *_best(points, at), *_dots(points, at)]
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>')


def _x(index: int, count: int) -> float:
    return LEFT + 12 + (WIDTH - LEFT - RIGHT - 24) * (index / max(count - 1, 1))


def _y(score: float | None, low: float, high: float) -> float:
    if score is None:
        return RAIL
    return TOP + (RAIL - 24 - TOP) * (1 - (score - low) / (high - low))


def _grid(low: float, high: float) -> list[str]:
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{RAIL}" y2="{RAIL}" stroke="#dfe3ea"/>',
        f'<text x="8" y="{RAIL + 4}">failed</text>',
    ]
    for step in range(5):
        score = low + (high - low) * step / 4
        y = _y(score, low, high)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eef0f4"/>')
        parts.append(f'<text x="8" y="{y + 4:.1f}">{math.exp(score):.2f}x</text>')
    return parts


def _edges(points: Sequence[Point], at: dict[str, tuple[float, float]]) -> list[str]:
    lines = []
    for point in points:
        x, y = at[point.id]
        for px, py in (at[parent] for parent in point.parents if parent in at):
            lines.append(f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{x:.1f}" y2="{y:.1f}" stroke="#b9c2d3"/>')
    return lines


def _best(points: Sequence[Point], at: dict[str, tuple[float, float]]) -> list[str]:
    path, best = "", -math.inf
    for point in points:
        if point.score is not None and point.leads and point.score > best:
            best = point.score
            x, y = at[point.id]
            path += f"M{x:.1f} {y:.1f}" if not path else f"H{x:.1f}V{y:.1f}"
    return [f'<path d="{path}H{WIDTH - RIGHT}" fill="none" stroke="#1a7f4b" stroke-width="1.5"/>'] if path else []


def _dots(points: Sequence[Point], at: dict[str, tuple[float, float]]) -> list[str]:
    dots = []
    for point in points:
        x, y = at[point.id]
        colour = "#1a7f4b" if point.score is not None else "#b3372f"
        label = escape(f"{point.id} {point.status}")
        circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"><title>{label}</title></circle>'
        dots.append(f'<a href="#{escape(point.id)}">{circle}</a>')
    return dots
