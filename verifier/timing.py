"""Is a candidate faster than its base? A sequential decision, then a confirmation on blocks that decided nothing.

    decided = decide(measure)                   # few blocks: stops as soon as the answer is known, or far behind
    confirmed = confirm(measure, decided)       # fresh blocks: only this number is reported

`measure(index)` times one block: inputs made anew from a seed of that index, memory allocated anew or exchanged between
the two, then pairs in ABBA order, or in BAAB order where the base begins (`candidate_first`). The caller owns the GPU;
nothing here touches one. What `measure` raises passes through.

Blocks that are thrown out count towards the caps. None of the reasons looks at who won:

- `invalid`: fewer than two pairs, or a number that is not finite and positive.
- `low_clock`: the SM clock is under `clock_share` of the median of all readings so far. The median follows a kernel
  that the power limit holds at a low clock for good; only a passing dip is thrown out. (nvbench, which has the idea,
  compares with the nominal clock.)
- `starved`: the GPU waited for more than `starved_share` of the calls, since the host gave them too late. The wait
  counts as part of the call, and can be as long as a short one.
- `above_host`: the event times add up to more than the host's clock saw, plus `host_slack`. Impossible, so one such
  block raises `Flag.HOST_CLOCK`.
- `below_host`: events and the declared untimed work explain less than `host_share` of the host's time, after a
  launch allowance. A busy host does that now and then; more than a quarter of the blocks raises the flag.

What this does not see: an address that is better in every block looks like a gain, so memory must really move between
blocks; noise that is more one-sided for one contestant than for the other shifts the ratio of the medians.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean, median
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from verifier.sequence import (
    block_location,
    bounded_half_width,
    sequence_half_width,
    stein_blocks,
    stein_half_width,
)


class _Record(BaseModel):
    """Frozen and strict like `verdict.Record`, which cannot be imported from here: a verdict holds a `Timing`."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Block:
    """One block as measured. All times in seconds."""

    pairs: tuple[tuple[float, float], ...]
    """(candidate, base) by the GPU's clock; who runs first in a pair changes from pair to pair."""
    clock_hz: float | None = None
    """SM clock during the block, None when it was not read."""
    host_seconds: float | None = None
    """The judge's own clock round the whole window, None when it was not read."""
    untimed_seconds: float = 0.0
    """What the window is known to spend outside the events: cache flushes, copies."""
    starved: int = 0
    """Calls that the GPU waited for, which makes them look longer."""


Measure = Callable[[int], Block]


def candidate_first(index: int, coins: int) -> bool:
    """Whether the candidate begins block `index`: of the blocks 2k and 2k + 1 it begins one, and bit k of `coins`
    (which repeat after 64) says which.

    ABBA cancels a linear drift inside of a block, and nothing else. The first call after memory moved can be 4% slower,
    and a power limit lowers the clock at about the same call of every block: whoever always begins pays for it in every
    block, and no interval shows that.
    """
    return (coins >> index // 2 % 64 & 1) != index % 2


class Decision(StrEnum):
    """What the interval of log(base / candidate) says."""

    FASTER = "faster"
    """All of it above the margin."""
    SLOWER = "slower"
    """All of it below zero."""
    FUTILE = "futile"
    """All of it below the margin, zero inside: no gain that could be claimed."""
    UNDECIDED = "undecided"


class Flag(StrEnum):
    """Reasons to keep a timing out of tables until they are explained."""

    IMPLAUSIBLE = "implausible"
    """The candidate ran under the roofline floor."""
    BASE_IMPLAUSIBLE = "base_implausible"
    """The base did, so the floor itself is in doubt."""
    HOST_CLOCK = "host_clock"
    """The GPU's and the host's clock do not agree."""
    INVALID = "invalid"
    """Blocks with unusable numbers."""
    UNSTEADY = "unsteady"
    """More than half of the blocks were thrown out."""
    IMPRECISE = "imprecise"
    """A cap came before the confirmation's precision."""


class Rules(_Record):
    """When to stop and what to throw out."""

    margin: float = Field(default=math.log(1.005), ge=0)
    """Least log ratio that counts as a gain; two copies at two addresses differ by less."""
    max_blocks: int = Field(default=64, ge=1)
    """Most blocks measured, thrown out or not."""
    max_seconds: float = Field(default=0.5, ge=0)
    """No block starts later than this after the first, but for the first `min_blocks`."""
    min_blocks: int = Field(default=6, ge=0)
    """Taken however long they last: a block of a large problem spends most of its time on new inputs and memory."""
    alpha: float = Field(default=0.04, gt=0, lt=1)
    """1 - confidence, both sides together: half of it bounds the false claims of a candidate just at the margin."""
    scale: float = Field(default=3.0, gt=0)
    """Gain over the spread of blocks that the confidence sequence is tuned for."""
    spread: float = Field(default=0.05, ge=0)
    """Largest standard deviation of blocks that is believed: three times what blocks of two pairs show at an H200's
    power limit, and far more than others do. A candidate that is behind by more than that allows, 12% after two blocks,
    is slower without a third, and one that takes 1.8 times as long without a second: it earns no better number. No gain
    is ever claimed on so few. 0 for never."""
    clock_share: float = Field(default=0.93, ge=0, le=1)
    """Of the median SM clock so far; a block below it is thrown out."""
    uneven: float = Field(default=0.5, ge=0, le=1)
    """A block in which the candidate takes less than this share of its median so far, and of its median share of the
    base, is thrown out. Where a block has two pairs its number is a mean, so that a kernel which leaves its work out in
    one call of eight would look twice as fast."""
    starved_share: float = Field(default=0.125, ge=0, le=1)
    """Of the calls of a block, that the GPU may have waited for."""
    host_slack: float = Field(default=2e-5, ge=0)
    """Seconds by which the events of a block may exceed the host's time: the step of the two clocks."""
    host_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the host's time that must be explained."""
    launch_seconds: float = Field(default=2e-5, ge=0)
    """Host seconds that each launch may cost beside its event time; a kernel shorter than this is bounded loosely."""
    resolution: float = Field(default=0.0, ge=0)
    """Step of the GPU's timer, seconds; no interval is narrower than a step over the shorter time."""


class Confirmation(Rules):
    """Rules of the fixed-precision confirmation."""

    max_blocks: int = Field(default=512, ge=1)
    max_seconds: float = Field(default=3.0, ge=0)
    min_blocks: int = Field(default=16, ge=0)
    alpha: float = Field(default=0.03, gt=0, lt=1)
    """A little under 5%: heavy tails and serial correlation take the rest (`experiments/aa.py`)."""
    goal: float = Field(default=0.0017, gt=0)
    """Half-width of the interval to reach, log ratio."""
    pilot: int = Field(default=16, ge=8)
    """Blocks that the spread is estimated from."""


RULES = Rules()
CONFIRMATION = Confirmation()


class Timing(_Record):
    """One comparison of a candidate with a base on one workload. Ratios are log(base / candidate)."""

    kind: Literal["decision", "confirmation"]
    decision: Decision
    candidate_seconds: float | None
    """Median over the blocks kept of the block's median, None when no block was kept; so for the base."""
    base_seconds: float | None
    log_ratio: float | None
    lower: float | None
    """The interval, None before there are enough blocks."""
    upper: float | None
    confidence: float
    margin: float
    blocks: int
    """Kept."""
    pairs: int
    """In the blocks kept."""
    thrown: dict[str, int]
    """Reason to number of blocks thrown out."""
    first_block: int
    next_block: int
    """Blocks first_block to next_block - 1 were measured; a confirmation starts here."""
    flags: tuple[Flag, ...] = ()
    seconds: float
    """Wall seconds of the whole comparison."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.lower is None) != (self.upper is None):
            raise ValueError("an interval has two ends")
        if self.decision is not classify(self.lower, self.upper, self.margin):
            raise ValueError("the decision is what the interval says")
        return self

    @property
    def speedup(self) -> float | None:
        """base / candidate."""
        return None if self.log_ratio is None else math.exp(self.log_ratio)


class WorkloadTiming(_Record):
    """Times of one workload: what decided, and where it was asked for, what confirmed on fresh blocks."""

    workload: str
    base: str = "eager"
    """Name of the baseline that it was timed against."""
    path: Literal["plan", "live"] = "plan"
    """What was timed: the plan by the GPU's events, or the candidate's own process by the judge's host clock, launch
    overhead included."""
    decided: Timing
    confirmed: Timing | None = None
    graphs: tuple[bool, bool]
    """Whether candidate and base ran as CUDA graphs."""
    choice: dict[int, int] = Field(default_factory=dict)
    """Forward step to the alternative that was timed."""
    host_bound_seconds: float | None = None
    """The candidate's mean time by the judge's own clock, runs back to back: no honest time is above it."""


def classify(lower: float | None, upper: float | None, margin: float) -> Decision:
    """The decision that an interval stands for."""
    if lower is None or upper is None:
        return Decision.UNDECIDED
    if lower > margin:
        return Decision.FASTER
    if upper < 0:
        return Decision.SLOWER
    return Decision.FUTILE if upper < margin else Decision.UNDECIDED


def decide(
    measure: Measure,
    rules: Rules = RULES,
    *,
    floor_seconds: float = 0.0,
    first_block: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Measure blocks until the confidence sequence decides or a cap is reached.

    `floor_seconds` is the least time that the candidate can honestly take (roofline).
    """
    sample, half = _Sample(measure, rules, first_block, clock), math.inf
    while sample.may_go_on():
        sample.take()
        half = sequence_half_width(sample.values, rules.alpha, rules.scale)
        if classify(*sample.interval(half), rules.margin) is not Decision.UNDECIDED:
            break
        if sample.behind(sample.believed()):
            half = sample.believed()
            break
    return sample.timing("decision", half, floor_seconds)


def confirm(
    measure: Measure,
    decided: Timing,
    rules: Confirmation = CONFIRMATION,
    *,
    floor_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Measure blocks after those of `decided` until the interval's half-width is `rules.goal`, or a cap is reached."""
    sample = _Sample(measure, rules, decided.next_block, clock)
    need = rules.pilot
    while len(sample.values) < need and sample.may_go_on():
        sample.take()
        if len(sample.values) == rules.pilot:
            need = stein_blocks(sample.values, rules.goal, rules.alpha)
    half = stein_half_width(sample.values, rules.pilot, rules.alpha)
    short = (Flag.IMPRECISE,) if sample.widened(half) > rules.goal else ()
    return sample.timing("confirmation", half, floor_seconds, short)


def objection(
    block: Block, clocks: list[float], rules: Rules, usual: tuple[list[float], list[float]] = ([], [])
) -> str | None:
    """Why a block is thrown out, or None. `clocks` are the readings of the blocks before it, `usual` the medians of the
    candidate's times and of its shares of the base in them.
    """
    readings = [x for pair in block.pairs for x in pair]
    readings += [x for x in (block.clock_hz, block.host_seconds) if x is not None]
    if len(block.pairs) < 2 or not all(math.isfinite(x) and x > 0 for x in readings):
        return "invalid"
    if block.clock_hz is not None and block.clock_hz < rules.clock_share * median([*clocks, block.clock_hz]):
        return "low_clock"
    times, shares = (median([*before, here]) for before, here in zip(usual, _usual(block), strict=True))
    if any(c < rules.uneven * times and c / b < rules.uneven * shares for c, b in block.pairs):
        return "uneven"
    if block.starved > rules.starved_share * 2 * len(block.pairs):
        return "starved"
    if block.host_seconds is None:
        return None
    events = sum(map(sum, block.pairs))
    if events > block.host_seconds + rules.host_slack:
        return "above_host"
    explained = events + block.untimed_seconds + 2 * len(block.pairs) * rules.launch_seconds
    return "below_host" if explained < rules.host_share * block.host_seconds else None


def _usual(block: Block) -> tuple[float, float]:
    """Medians of the candidate's times and of its shares of the base."""
    return median(c for c, _ in block.pairs), median(c / b for c, b in block.pairs)


@dataclass
class _Sample:
    """The blocks of one comparison as they come in."""

    measure: Measure
    rules: Rules
    first: int
    clock: Callable[[], float]
    values: list[float] = field(default_factory=list)
    candidate: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    clocks: list[float] = field(default_factory=list)
    usual: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Of every block that is not invalid, as `objection` wants them."""
    thrown: Counter[str] = field(default_factory=Counter)
    pairs: int = 0

    def __post_init__(self) -> None:
        self.start = self.clock()

    @property
    def taken(self) -> int:
        return len(self.values) + self.thrown.total()

    def may_go_on(self) -> bool:
        in_time = self.taken < self.rules.min_blocks or self.clock() - self.start < self.rules.max_seconds
        return self.taken < self.rules.max_blocks and in_time

    def take(self) -> None:
        block = self.measure(self.first + self.taken)
        reason = objection(block, self.clocks, self.rules, self.usual)
        if block.clock_hz is not None and reason != "invalid":
            self.clocks.append(block.clock_hz)
        if reason != "invalid":
            for before, here in zip(self.usual, _usual(block), strict=True):
                before.append(here)
        if reason is not None:
            self.thrown[reason] += 1
            return
        self.values.append(block_location(block.pairs))
        self.candidate.append(median(c for c, _ in block.pairs))
        self.base.append(median(b for _, b in block.pairs))
        self.pairs += len(block.pairs)

    def believed(self) -> float:
        """Half-width if blocks spread as `rules.spread` says, and a single one three times as far; infinite where they
        contradict that."""
        n, spread = len(self.values), self.rules.spread
        if not n or not spread or max(self.values) - min(self.values) > 2 * spread:
            return math.inf
        return bounded_half_width(n, 3 * spread if n == 1 else spread, self.rules.alpha)

    def behind(self, half: float) -> bool:
        """Whether the candidate is slower by more than this half-width."""
        return bool(self.values) and fmean(self.values) + half < 0

    def widened(self, half: float) -> float:
        if not self.values:
            return math.inf
        return max(half, self.rules.resolution / min(median(self.candidate), median(self.base)))

    def interval(self, half: float) -> tuple[float | None, float | None]:
        half = self.widened(half)
        if math.isinf(half):
            return None, None
        centre = fmean(self.values)
        return centre - half, centre + half

    def flags(self, floor_seconds: float) -> list[Flag]:
        bad, kept = self.thrown, len(self.values)
        found = {
            Flag.IMPLAUSIBLE: kept > 0 and median(self.candidate) < floor_seconds,
            Flag.BASE_IMPLAUSIBLE: kept > 0 and median(self.base) < floor_seconds,
            Flag.HOST_CLOCK: bad["above_host"] > 0 or bad["below_host"] > self.taken / 4,
            Flag.INVALID: bad["invalid"] > 0,
            Flag.UNSTEADY: bad.total() > self.taken / 2,
        }
        return [flag for flag, raised in found.items() if raised]

    def timing(
        self,
        kind: Literal["decision", "confirmation"],
        half: float,
        floor_seconds: float,
        more: tuple[Flag, ...] = (),
    ) -> Timing:
        lower, upper = self.interval(half)
        return Timing(
            kind=kind,
            decision=classify(lower, upper, self.rules.margin),
            candidate_seconds=median(self.candidate) if self.values else None,
            base_seconds=median(self.base) if self.values else None,
            log_ratio=fmean(self.values) if self.values else None,
            lower=lower,
            upper=upper,
            confidence=1 - self.rules.alpha,
            margin=self.rules.margin,
            blocks=len(self.values),
            pairs=self.pairs,
            thrown=dict(self.thrown),
            first_block=self.first,
            next_block=self.first + self.taken,
            flags=(*self.flags(floor_seconds), *more),
            seconds=self.clock() - self.start,
        )
