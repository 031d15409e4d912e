"""Statistics of the timer: one number for a block, a confidence sequence over blocks, a fixed-precision interval.

Plain numbers in, plain numbers out. A block is one allocation of memory with fresh inputs; everything here takes
blocks as independent and their numbers as roughly normal, which `experiments/aa.py` puts to the test.

Sources: T. Kalibera and R. Jones, "Rigorous benchmarking in reasonable time" (ISMM 2013) for the levels of repetition,
the highest of which (the block) is the unit; T. Lai, "On confidence sequences" (1976) and H. Wang and A. Ramdas,
"Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance" (2023); C. Stein, "A
two-sample test for a linear hypothesis whose power is independent of the variance" (1945).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from statistics import NormalDist, median

LEAST_BLOCKS = 4
"""Fewer blocks give no interval: with three, one lucky scatter is enough to be sure of anything."""
MOST_SERIAL = 0.8
"""Cap of the serial correlation that is believed from a pilot."""


def block_location(pairs: Sequence[tuple[float, float]]) -> float:
    """log(base / candidate) of one block; positive where the candidate is faster.

    `pairs` are (candidate, base) seconds, finite and positive, in ABBA or BAAB order: who runs first in pairs 0, 2, 4
    runs second in pairs 1, 3, 5. The result is the mean of two medians of log ratios, one for each order. A linear
    drift of log time and a cost of the place in the pair enter the two with opposite signs and cancel; the medians
    shrug off wild pairs. (Means of neighbouring pairs cancel as much, but a wild launch then spoils two pairs.) What is
    not linear, as a slow first call, stays in, most of it where the pairs are few; it changes its sign with the order.
    Needs two pairs.
    """
    logs = [math.log(base) - math.log(candidate) for candidate, base in pairs]
    return (median(logs[::2]) + median(logs[1::2])) / 2


def sequence_half_width(blocks: Sequence[float], alpha: float, scale: float) -> float:
    """Half-width of the confidence sequence for the mean of `blocks`: it may be looked at after every block.

    The t-test's Bayes factor with a normal prior of variance `scale`^2 on the standardised mean is a martingale for
    normal numbers of any variance, so by Ville's inequality it stays under 1/alpha for ever with probability
    1 - alpha. With n blocks, r = 1 + n scale^2 and k = (sqrt(r) / alpha)^(2/n) its inverse is

        s / sqrt(n) * sqrt((n - 1) (k - 1) / (1 - k / r)),   infinite while k >= r.
    """
    n = len(blocks)
    if n < LEAST_BLOCKS:
        return math.inf
    r = 1 + n * scale**2
    k = (math.sqrt(r) / alpha) ** (2 / n)
    if k >= r:
        return math.inf
    return math.sqrt(_squares(_errors(blocks)) / n * (k - 1) / (1 - k / r))


def bounded_half_width(n: int, spread: float, alpha: float) -> float:
    """Half-width of the confidence sequence for the mean of `n` blocks whose standard deviation is `spread` at most.

    H. Robbins, "Statistical methods related to the law of the iterated logarithm" (1970): with a normal prior of the
    blocks' own variance on the mean, it holds for ever with probability 1 - alpha.
    """
    return spread * math.sqrt((n + 1) / n**2 * math.log((n + 1) / alpha**2))


def stein_blocks(pilot: Sequence[float], goal: float, alpha: float) -> int:
    """How many blocks, the pilot's included, bring `stein_half_width` down to `goal`."""
    return max(len(pilot), math.ceil((_stein_unit(pilot, alpha) / goal) ** 2))


def stein_half_width(blocks: Sequence[float], pilot: int, alpha: float) -> float:
    """Half-width t s / sqrt(n) where s comes from the first `pilot` blocks alone.

    Stein's two stages: as n depends on the data through s only, the mean's error over s / sqrt(n) is Student's t with
    pilot - 1 degrees of freedom, exactly for independent normal numbers. A first serial correlation r > 0 widens s by
    sqrt((1 + r) / (1 - r)), the effective sample size of an AR(1) series (G. Bayley and J. Hammersley, 1946).
    Infinite under `LEAST_BLOCKS` blocks.
    """
    first = blocks[:pilot]
    return _stein_unit(first, alpha) / math.sqrt(len(blocks)) if len(first) >= LEAST_BLOCKS else math.inf


def _stein_unit(pilot: Sequence[float], alpha: float) -> float:
    n, errors = len(pilot), _errors(pilot)
    square = _squares(errors)
    serial = math.fsum(map(operator.mul, errors, errors[1:])) / square if square else 0.0
    r = min(max(serial + 1 / n, 0.0), MOST_SERIAL)
    return t_quantile(1 - alpha / 2, n - 1) * math.sqrt(square / (n - 1) * (1 + r) / (1 - r))


def _errors(numbers: Sequence[float]) -> list[float]:
    centre = math.fsum(numbers) / len(numbers)
    return [x - centre for x in numbers]


def _squares(errors: Sequence[float]) -> float:
    return math.fsum(e * e for e in errors)


def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t, Abramowitz and Stegun 26.7.5; within 0.2% for `freedom` >= 3 and 0.005 <= p <= 0.995."""
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))
