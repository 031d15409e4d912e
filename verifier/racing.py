"""Which alternatives of a plan's launch steps are fastest together (autotune configurations)?

Coordinate descent over the launch steps, one at a time: the alternatives of a step race by successive halving with the
other steps held (K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification", 2016), in sweeps until one
changes nothing. Then the joint winner is timed against the start, alternating, and wins only if it is faster. This
picks a configuration and claims nothing: being picked flatters a time, so `timing.py` times the winner anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

HOPELESS = 1.3
"""Times the best measurement of a round: what is behind that far is not measured again."""
Choice = Mapping[int, int]
"""Index of a launch step to index of its alternative; a step that is missing takes alternative 0."""


@dataclass(frozen=True, slots=True)
class Race:
    """What a race found."""

    choice: dict[int, int]
    seconds: float
    """Median of the joint winner in the last comparison; infinite if not one of its measurements could be used."""
    start_seconds: float
    """The same of the start."""
    measurements: int
    sweeps: int


def race(
    alternatives: Mapping[int, int],
    measure: Callable[[Choice], float],
    *,
    repeats: int = 4,
    max_sweeps: int = 3,
    max_measurements: int = 1000,
    max_seconds: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """The best joint choice among `alternatives` (step to number of alternatives), starting from alternative 0 of each.

    `measure` gives seconds; NaN, zero, negative and infinite stand for "cannot run" and lose. What it raises passes
    through. `repeats` measurements go to each alternative in the first round of a step and twice as many in each later
    one; make it even, so that drift cancels. `max_measurements` ends the race before a round that would pass it, but
    the last comparison is always made. After `max_seconds` nothing more is measured, and the start stays where
    that leaves too little to compare.
    """
    start = {step: 0 for step, count in alternatives.items() if count > 1}
    track = _Track(measure, max_measurements, clock, clock() + max_seconds)
    best, sweeps = dict(start), 0
    while sweeps < max_sweeps and start:
        before = dict(best)
        for step in start:
            best[step] = _fastest(best, step, alternatives[step], repeats, track)
        sweeps += 1
        if best == before or len(start) == 1:
            break
    if best == start:
        (seconds,) = track.medians([start], repeats)
        return Race(start, seconds, seconds, track.count, sweeps)
    seconds, first = track.medians([best, start], 2 * repeats)
    if seconds < first:
        return Race(best, seconds, first, track.count, sweeps)
    return Race(start, first, first, track.count, sweeps)


def _fastest(best: Choice, step: int, count: int, repeats: int, track: _Track) -> int:
    """The alternative of `step` that survives the halving; a tie goes to the one that `best` holds."""
    held = best[step]
    alive = [held, *(i for i in range(count) if i != held)]
    while len(alive) > 1 and track.left() >= repeats * len(alive):
        medians = track.medians([{**best, step: i} for i in alive], repeats)
        ranked = sorted(zip(medians, range(len(alive)), alive, strict=True))
        most = HOPELESS * ranked[0][0]
        alive = [i for seconds, _, i in ranked[: (len(alive) + 1) // 2] if math.isfinite(seconds) and seconds <= most]
        repeats *= 2
    return alive[0] if alive else held


@dataclass
class _Track:
    """Measures interleaved and counts."""

    measure: Callable[[Choice], float]
    most: int
    clock: Callable[[], float]
    end: float
    count: int = field(default=0)

    def left(self) -> int:
        return 0 if self.clock() > self.end else self.most - self.count

    def medians(self, choices: Sequence[Choice], repeats: int) -> list[float]:
        """Median seconds of each choice; every other round runs backwards, so that a linear drift cancels. One that is
        far behind after its first measurement has no other."""
        seen: list[list[float]] = [[] for _ in choices]
        for turn in range(repeats):
            order = range(len(choices)) if turn % 2 == 0 else range(len(choices) - 1, -1, -1)
            hopeless = HOPELESS * min(times[0] for times in seen) if turn else math.inf
            for i in order:
                if not turn or seen[i][0] <= hopeless:
                    seen[i].append(self._one(choices[i]))
        return [median(times) for times in seen]

    def _one(self, choice: Choice) -> float:
        if self.clock() > self.end:
            return math.inf
        self.count += 1
        seconds = self.measure(dict(choice))
        return seconds if math.isfinite(seconds) and seconds > 0 else math.inf
