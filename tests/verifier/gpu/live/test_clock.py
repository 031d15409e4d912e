"""What is made of times by the judge's own clock, with times that this file makes up."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from verifier.gpu.live import HIDDEN_SECONDS, HostPairs
from verifier.timing import RULES, Block, Decision, Rules, decide


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> HostPairs:
    """Without processes or memory; copies of outputs take 10 us."""
    monkeypatch.setattr(HostPairs, "copy_seconds", lambda self: 1e-5)
    return HostPairs(cast(Any, None), cast(Any, None), cast(Any, None))


@pytest.mark.parametrize(
    ("seconds", "share", "decision"),
    [
        (1e-2, 0.90, Decision.FASTER),
        (1e-2, 0.985, Decision.UNDECIDED),
        (1e-3, 0.94, Decision.UNDECIDED),
        (1e-3, 0.80, Decision.FASTER),
        (1e-4, 0.60, Decision.UNDECIDED),
    ],
    ids=["long and much", "long and little", "short and little", "short and much", "a liar could gain it"],
)
def test_a_gain_within_what_the_clock_cannot_see_is_not_claimed(
    pairs: HostPairs, seconds: float, share: float, decision: Decision
) -> None:
    timing = decide(lambda _: Block(((share * seconds, seconds),) * 2), pairs.rules(RULES))
    assert timing.decision is decision
    assert timing.margin == pytest.approx(math.log(1.02))
    assert timing.lower is not None
    assert timing.upper is not None
    assert (timing.upper - timing.lower) / 2 >= (HIDDEN_SECONDS + 1e-5) / (share * seconds) * 0.999


def test_rules_of_the_request_stay_as_they_are(pairs: HostPairs) -> None:
    own = Rules(max_blocks=6, margin=0.3)
    assert pairs.rules(own) == own.model_copy(update={"spread": 0.0})


@pytest.mark.parametrize(
    ("beside", "writes", "said"),
    [
        (10.4e-3, 1e-4, ""),
        (10.6e-3, 1e-4, "the base takes 10600 us beside the candidate and 10000 us alone"),
        (10e-3, 5e-4, ""),
        (10e-3, 9e-4, "the GPU is busy with the candidate's work"),
    ],
    ids=["as alone", "slower", "as idle", "busy"],
)
def test_times_beside_one_that_slows_the_base_or_works_early_do_not_stand(
    pairs: HostPairs, beside: float, writes: float, said: str
) -> None:
    pairs.base_seconds += [beside] * 3
    pairs._writes["a"] += [writes] * 3
    pairs._writes["b"] += [1e-4] * 3
    found = pairs.disturbed(10e-3, 1.05)
    assert said in found
    assert bool(said) == bool(found)


def test_a_short_base_may_be_slower_by_what_the_clock_cannot_see(pairs: HostPairs) -> None:
    pairs.base_seconds += [1.5e-4]
    pairs._writes["a"] += [1e-4]
    pairs._writes["b"] += [1e-4]
    assert not pairs.disturbed(1e-4, 1.05)
