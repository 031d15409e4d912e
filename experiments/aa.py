"""Does the timer claim gains that are not there, and does it find those that are? A simulation of `verifier.timing`.

    python -m experiments.aa [--runs 1000] [--seed 1]

Prints Markdown tables. Every run is a simulated GPU with its own noise: launches share a drift and an autocorrelated
clock, each side has autocorrelated noise of its own, and every block draws new address offsets. Nothing else is reset
between blocks. Long calls leave two pairs to a block and few blocks to a comparison; what is not linear inside of a
block shows in them, as it was measured on an H200. Caps count blocks: wall time is not simulated. Beside it stands what
is often done instead: a 95% t-interval of the same pairs, looked at after each.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt

from verifier.sequence import t_quantile
from verifier.timing import CONFIRMATION, RULES, Block, Decision, Flag, Timing, candidate_first, confirm, decide

Array = npt.NDArray[np.float64]

PAIRS = 8
"""In a block of the decision."""
CONFIRMED_PAIRS = 16
"""In a block of the confirmation."""
LONG_PAIRS = 2
"""In every block, where calls are long."""
LONG_RULES = RULES.model_copy(update={"max_blocks": 8})
LONG_CONFIRMATION = CONFIRMATION.model_copy(update={"min_blocks": 8, "pilot": 8, "max_blocks": 12})
"""As many blocks as long calls get in the time that there is."""
GAINS = {"2%": math.log(1.02), "5%": math.log(1.05)}
NAIVE_BLOCKS = 50
JUDGEMENTS = 10
"""Separate confirmations whose spread is reported."""


@dataclass(frozen=True)
class Noise:
    """One regime, all in log time. Standard deviations unless said otherwise."""

    jitter: float = 0.01
    """Of each launch, independent."""
    freedom: float | None = None
    """Student's t with so many degrees of freedom in place of the normal jitter."""
    spikes: float = 0.0
    """Chance of a launch that takes 5 to 50% longer."""
    drift: float = 0.0
    """Of both sides, from launch to launch."""
    common: float = 0.0
    """AR(1), rho 0.95, of both sides."""
    own: float = 0.0
    """AR(1), rho 0.9, of each side alone."""
    second: float = 0.005
    """Cost of running second in the pair."""
    address: float = 0.004
    """Each side's offset in a block is uniform in plus and minus this."""
    held: float = 0.0
    """The same, but drawn once and kept over all blocks: memory that comes back at its old place."""
    exchanged: float = 0.0
    """Drawn once too, and the sides exchange theirs from block to block: memory that stays and changes hands."""
    dips: float = 0.0
    """Chance that a launch begins a dip of the clock, 5 to 30% deep, 24 launches long on average."""
    begin: float = 0.0
    """The first launch of three blocks in four takes about so much longer: memory that was given back is being cleared.
    A call that does not count, before each block, takes it away on a GPU; here nothing does."""
    falls: float = 0.0
    """Every other block, launches of its second half from one on take up to so much longer: a power limit is reached
    after a while."""
    long: bool = False
    """Long calls: few pairs in a block, few blocks."""


REGIMES = {
    "quiet": Noise(jitter=0.001),
    "jitter and drift": Noise(drift=0.0005),
    "autocorrelated": Noise(jitter=0.005, common=0.02, own=0.005),
    "heavy tails": Noise(freedom=2.5, spikes=0.03),
    "addresses exchanged": Noise(jitter=0.003, address=0.0, exchanged=0.004),
    "exchanged and quiet": Noise(jitter=0.0005, address=0.001, exchanged=0.004),
    "throttling": Noise(jitter=0.005, dips=0.01, common=0.01),
    "all of it": Noise(jitter=0.015, freedom=3, spikes=0.02, drift=-0.0002, common=0.02, own=0.005, dips=0.005),
}
LONG = {
    "long calls": Noise(jitter=0.0003, second=0.0, address=0.0003, long=True),
    "long calls after moved memory": Noise(jitter=0.0003, second=0.0, address=0.0003, begin=0.04, long=True),
    "long calls at the power limit": Noise(jitter=0.002, second=0.0, address=0.0003, common=0.02, falls=0.1, long=True),
}
LIMITS = {
    "addresses half kept": Noise(jitter=0.003, address=0.002, held=0.002),
    "addresses kept": Noise(jitter=0.003, address=0.0, held=0.004),
}
"""What no statistics of times can see: memory that is allocated anew but does not move."""


class Source:
    """A simulated GPU: called with a block's index it gives the block. `gain` is log(base / candidate)."""

    def __init__(self, noise: Noise, gain: float, rng: np.random.Generator, pairs: int = PAIRS) -> None:
        self.noise, self.gain, self.rng, self.pairs = noise, gain, rng, pairs
        self.launches, self.coins = 0, int(rng.integers(1 << 62))
        self.common = np.array(rng.normal(0, noise.common))
        self.own = rng.normal(0, noise.own, 2)
        self.held = rng.uniform(-noise.held, noise.held, 2)
        self.exchanged = rng.uniform(-noise.exchanged, noise.exchanged, 2)
        self.dip, self.dip_left = 0.0, 0

    def __call__(self, index: int) -> Block:
        n = 2 * self.pairs
        clock = 1.98e9 * math.exp(-self.dip) * self.rng.normal(1, 0.002)
        first = candidate_first(index, self.coins)
        sides = np.tile([0, 1, 1, 0] if first else [1, 0, 0, 1], self.pairs // 2)
        logs = math.log(1e-4) + self._shared(n) + self._jitter(n)
        logs += self._own(n)[sides, np.arange(n)]
        kept = self.held + self.exchanged[:: 1 if index % 2 else -1]
        offsets = kept + self.rng.uniform(-self.noise.address, self.noise.address, 2) - [self.gain, 0]
        logs += offsets[sides] + self.noise.second * (np.arange(n) % 2)
        seconds = np.stack([np.exp(logs[sides == side]) for side in (0, 1)], axis=1)
        return Block(tuple((float(c), float(b)) for c, b in seconds), clock_hz=float(clock))

    def _shared(self, n: int) -> Array:
        path = autoregression(self.rng.standard_normal(n), self.common, 0.95, self.noise.common)
        self.common = path[-1]
        drift = self.noise.drift * (self.launches + np.arange(n))
        self.launches += n
        dips = np.array([self._dip() for _ in range(n)]) if self.noise.dips else 0.0
        return path + drift + dips + self._bent(n)

    def _bent(self, n: int) -> Array:
        """What is not linear inside of a block."""
        noise, rng, found = self.noise, self.rng, np.zeros(n)
        if noise.begin and rng.random() < 0.75:
            found[0] += noise.begin * rng.uniform(0.8, 1.2)
        if noise.falls and rng.random() < 0.5:
            found[rng.integers(n // 2, n) :] += noise.falls * rng.random()
        return found

    def _own(self, n: int) -> Array:
        paths = autoregression(self.rng.standard_normal((2, n)), self.own, 0.9, self.noise.own)
        self.own = paths[:, -1]
        return paths

    def _jitter(self, n: int) -> Array:
        noise, rng = self.noise, self.rng
        jitter = rng.standard_normal(n) if noise.freedom is None else rng.standard_t(noise.freedom, n)
        spikes = (rng.random(n) < noise.spikes) * np.log(rng.uniform(1.05, 1.5, n))
        return np.asarray(noise.jitter * jitter + spikes)

    def _dip(self) -> float:
        """Depth at the next launch."""
        if self.dip_left == 0:
            self.dip = 0.0
            if self.rng.random() < self.noise.dips:
                self.dip, self.dip_left = -math.log(1 - self.rng.uniform(0.05, 0.3)), int(self.rng.geometric(1 / 24))
        else:
            self.dip_left -= 1
        return self.dip


def autoregression(draws: Array, last: Array, rho: float, sd: float) -> Array:
    """AR(1) paths of standard deviation `sd` that go on from `last`; time is the last axis."""
    n = draws.shape[-1]
    lags = np.subtract.outer(np.arange(n), np.arange(n))
    step = sd * math.sqrt(1 - rho**2) * np.where(lags >= 0, rho ** np.maximum(lags, 0), 0.0)
    return np.asarray(draws @ step.T + last[..., None] * rho ** np.arange(1, n + 1))


def naive_claims(source: Source, margin: float) -> bool:
    """Does the lower end of a plain t-interval pass `margin` at any look, from the tenth pair on?"""
    pairs = np.log(np.array([pair for i in range(NAIVE_BLOCKS) for pair in source(i).pairs]))
    ratios, n = pairs[:, 1] - pairs[:, 0], np.arange(1, len(pairs) + 1)
    means = np.cumsum(ratios) / n
    variances = (np.cumsum(ratios**2) - n * means**2)[9:] / (n[9:] - 1)
    quantiles = _QUANTILES[: len(n) - 9]
    return bool(np.any(means[9:] - quantiles * np.sqrt(variances / n[9:]) > margin))


_QUANTILES = np.array([t_quantile(0.975, n - 1) for n in range(10, PAIRS * NAIVE_BLOCKS + 1)])


def sources(noise: Noise, gain: float, seed: Sequence[int], runs: int, pairs: int = PAIRS) -> Iterator[Source]:
    """Separate simulated GPUs, each with a seed of its own."""
    pairs = LONG_PAIRS if noise.long else pairs
    return (Source(noise, gain, np.random.default_rng([*seed, run]), pairs) for run in range(runs))


def decisions(noise: Noise, gain: float, seed: Sequence[int], runs: int) -> list[Timing]:
    """One decision on each simulated GPU."""
    rules = LONG_RULES if noise.long else RULES
    return [decide(source, rules, clock=_no_time) for source in sources(noise, gain, seed, runs)]


def confirmations(noise: Noise, gain: float, seed: Sequence[int], decided: Sequence[Timing]) -> list[Timing]:
    """One confirmation of each decision, on a simulated GPU of its own, as in a fresh process."""
    fresh, rules = sources(noise, gain, seed, len(decided), CONFIRMED_PAIRS), CONFIRMATION
    if noise.long:
        rules = LONG_CONFIRMATION
    return [confirm(source, timing, rules, clock=_no_time) for source, timing in zip(fresh, decided, strict=True)]


def _no_time() -> float:
    return 0.0


def share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def covered(timings: Sequence[Timing], gain: float) -> float:
    """Share of the intervals that hold the true gain; where there are too few blocks for one, it holds everything."""
    return share([t.lower is None or t.upper is None or t.lower <= gain <= t.upper for t in timings])


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}%"


def false_claims(name: str, noise: Noise, seed: int, runs: int) -> list[str]:
    """A row: two copies of one kernel, and a gain of just the margin, which is no claim either."""
    timings = decisions(noise, 0.0, [seed, 0], runs)
    pairs = sorted(t.pairs for t in timings)
    naive = [[naive_claims(s, margin) for s in sources(noise, 0.0, [seed, 1], runs)] for margin in (0.0, RULES.margin)]
    ended = [share([t.decision is d for t in timings]) for d in (Decision.FASTER, Decision.SLOWER, Decision.UNDECIDED)]
    at_margin = share([t.decision is Decision.FASTER for t in decisions(noise, RULES.margin, [seed, 6], runs)])
    claims, said = [at_margin, *map(share, naive)], [*ended, covered(timings, 0.0)]
    return [name, *map(percent, said), f"{median(pairs):.0f}", str(pairs[int(0.9 * runs)]), *map(percent, claims)]


def power(name: str, noise: Noise, seed: int, runs: int) -> list[str]:
    """A row: true gains."""
    row = [name]
    for number, gain in enumerate(GAINS.values(), 2):
        timings = decisions(noise, gain, [seed, number], runs)
        pairs = sorted(t.pairs for t in timings)
        found = share([t.decision is Decision.FASTER for t in timings])
        row += [percent(found), f"{median(pairs):.0f}", str(pairs[int(0.9 * runs)])]
    return row


def precision(name: str, noise: Noise, seed: int, runs: int) -> list[str]:
    """A row: what the confirmation reports for a true gain of 2%, and how far ten of its reports lie apart."""
    gain = GAINS["2%"]
    timings = confirmations(noise, gain, [seed, 4], decisions(noise, gain, [seed, 5], runs))
    halves = [t.upper - t.lower for t in timings if t.lower is not None and t.upper is not None]
    ratios = [t.speedup or math.nan for t in timings]
    groups = [ratios[i : i + JUDGEMENTS] for i in range(0, runs - JUDGEMENTS + 1, JUDGEMENTS)]
    spreads = sorted((max(g) - min(g)) / median(g) for g in groups)
    short = share([Flag.IMPRECISE in t.flags for t in timings])
    size = [
        percent(median(halves) / 2, 2),
        f"{median(t.blocks for t in timings):.0f}",
        f"{median(t.pairs for t in timings):.0f}",
    ]
    spread = [percent(x, 2) for x in (median(spreads), spreads[int(0.95 * len(spreads))], spreads[-1])]
    return [name, percent(covered(timings, gain)), percent(short), *size, *spread]


TABLES = {
    "two copies": (
        false_claims,
        [
            "faster",
            "slower",
            "undecided",
            "covered",
            "pairs: median",
            "p90",
            "faster at 0.5%",
            "naive: faster",
            "naive: by 0.5%",
        ],
    ),
    "true gains": (power, ["2%: found", "pairs: median", "p90", "5%: found", "pairs: median", "p90"]),
    "confirmation of a 2% gain": (
        precision,
        ["covered", "cut short", "half-width", "blocks", "pairs", "spread: median", "p95", "largest"],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the timer: false claims, power and precision.")
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of each cell")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"runs {args.runs}, seed {args.seed}, Python {platform.python_version()}, numpy {np.__version__}")
    for title, (row, columns) in TABLES.items():
        print(f"\n## {title}\n\n| {' | '.join(['regime', *columns])} |\n|{'---|' * (len(columns) + 1)}")
        for index, (name, noise) in enumerate((REGIMES | LONG | LIMITS).items()):
            print(f"| {' | '.join(row(name, noise, 100 * args.seed + index, args.runs))} |", flush=True)


if __name__ == "__main__":
    main()
