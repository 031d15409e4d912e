"""Measures figures one after the other, or reads what was measured."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from experiments.figures import FIGURES
from experiments.figures.base import Book, Clock, Figure, Lab, Line, say
from verifier.errors import UsageError, WarpsmithError


def figure(name: str) -> Figure:
    """Raises UsageError for an unknown name."""
    if name not in FIGURES:
        raise UsageError(f"there is no figure {name!r}", next_step=f"choose from {', '.join(FIGURES)}")
    return cast(Figure, importlib.import_module(f"experiments.figures.{name}"))


def run(wanted: Sequence[str], lab: Lab) -> list[Line]:
    """Measures figures one after the other; `wanted` are names, each perhaps with `=SECONDS`. A figure that cannot be
    measured is a line that says why. Raises UsageError for the names."""
    asked = [(name, figure(name), _seconds(text)) for name, _, text in (w.partition("=") for w in wanted)]
    lab.options.out.mkdir(parents=True, exist_ok=True)
    return [line for name, module, seconds in asked for line in _run(lab, name, module, seconds or module.SECONDS)]


def _run(lab: Lab, name: str, module: Figure, seconds: float) -> list[Line]:
    say(f"-- {name}")
    book, clock, failed = Book(lab.options.out / f"{name}.jsonl"), Clock(seconds), []
    try:
        module.measure(lab, book, clock)
    except WarpsmithError as error:
        first, *_, last = 2 * (str(error) or type(error).__name__).splitlines()
        failed = [Line("not finished", first if first == last else f"{first} {last}")]
    say(f"-- {name}: {clock.spent:.1f} s")
    return _named(name, [*failed, *module.lines(book.rows)])


def _named(name: str, found: Sequence[Line]) -> list[Line]:
    return [replace(line, what=f"{name}: {line.what}") for line in found]


def show(folder: Path) -> list[Line]:
    """The lines of a folder's rows, nothing measured."""
    found: list[Line] = []
    for name in FIGURES:
        if rows := Book(folder / f"{name}.jsonl").rows:
            found += _named(name, figure(name).lines(rows))
    return found


def _seconds(text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise UsageError(f"{text!r} is no number of seconds", next_step="write for example relu=60") from None
