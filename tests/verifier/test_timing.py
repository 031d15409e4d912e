"""Decision and confirmation: false claims, power, caps, blocks that are thrown out, sources that misbehave."""

import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from verifier.timing import CONFIRMATION, RULES, Block, Decision, Flag, Timing, candidate_first, confirm, decide

GAIN = math.log(1.03)


class Gpu:
    """Blocks of eight pairs: jitter of each launch, an offset of each side in each block, a drift over all launches."""

    def __init__(self, gain: float = 0.0, seed: int = 1, jitter: float = 0.005, drift: float = 0.0) -> None:
        self.gain, self.jitter, self.drift = gain, jitter, drift
        self.rng = random.Random(seed)
        self.asked: list[int] = []
        self.launches = 0

    def __call__(self, index: int) -> Block:
        self.asked.append(index)
        offsets = [self.rng.uniform(-0.004, 0.004) - self.gain, self.rng.uniform(-0.004, 0.004)]
        pairs = []
        for i in range(8):
            times = {side: self._launch(offsets[side]) for side in ((0, 1) if i % 2 == 0 else (1, 0))}
            pairs.append((times[0], times[1]))
        return Block(tuple(pairs))

    def _launch(self, offset: float) -> float:
        self.launches += 1
        return 1e-4 * math.exp(offset + self.rng.gauss(0, self.jitter) + self.drift * self.launches)


class Swapped:
    """The same blocks with candidate and base exchanged."""

    def __init__(self, source: Callable[[int], Block]) -> None:
        self.source = source

    def __call__(self, index: int) -> Block:
        return Block(tuple((base, candidate) for candidate, base in self.source(index).pairs))


class Ticks:
    """A clock that gains a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def steady(candidate: float = 1e-4, base: float = 1e-4, **more: float) -> Block:
    return Block(((candidate, base),) * 4, **more)


def still() -> float:
    return 0.0


@pytest.mark.parametrize(("gain", "decision"), [(GAIN, Decision.FASTER), (-GAIN, Decision.SLOWER)])
def test_a_difference_is_found_and_confirmed(gain: float, decision: Decision) -> None:
    source = Gpu(gain)
    decided = decide(source, clock=still)
    confirmed = confirm(source, decided, clock=still)
    assert decided.decision is confirmed.decision is decision
    assert decided.blocks < confirmed.blocks
    assert confirmed.speedup == pytest.approx(math.exp(gain), rel=CONFIRMATION.goal * 1.5)
    assert confirmed.lower is not None
    assert confirmed.upper is not None
    assert confirmed.upper - confirmed.lower <= 2 * CONFIRMATION.goal


def test_two_copies_are_futile() -> None:
    timing = decide(Gpu(), clock=still)
    assert timing.decision is Decision.FUTILE
    assert timing.blocks < RULES.max_blocks


def test_false_claims_are_rare() -> None:
    found = [decide(Gpu(seed=seed, jitter=0.01), clock=still).decision for seed in range(300)]
    assert found.count(Decision.FASTER) <= 6
    assert found.count(Decision.SLOWER) <= 12


def test_gains_are_found() -> None:
    found = [decide(Gpu(math.log(1.02), seed), clock=still) for seed in range(50)]
    assert all(t.decision is Decision.FASTER for t in found)
    assert sum(t.pairs for t in found) / 50 < 64


def test_what_is_far_behind_is_slower_after_two_blocks_and_nothing_is_faster_after_three() -> None:
    for seed in range(20):
        behind, ahead = (decide(Gpu(gain, seed), clock=still) for gain in (math.log(0.8), math.log(1.25)))
        assert (behind.decision, behind.blocks) == (Decision.SLOWER, 2)
        assert behind.lower is not None
        assert behind.upper is not None
        assert behind.lower < math.log(0.8) < behind.upper < 0
        hopeless = decide(Gpu(math.log(0.3), seed), clock=still)
        assert (hopeless.decision, hopeless.blocks) == (Decision.SLOWER, 1)
        assert (ahead.decision, ahead.blocks >= 4) == (Decision.FASTER, True)


def test_two_blocks_that_lie_far_apart_decide_nothing() -> None:
    blocks = (steady(1e-4 * math.exp(x)) for x in (0.5, 0.2, *[0.35] * 100))
    assert decide(lambda index: next(blocks), clock=still).blocks >= 4


def test_blocks_that_spread_as_far_as_is_believed_make_few_false_losses() -> None:
    def wild(rng: random.Random) -> Callable[[int], Block]:
        return lambda index: steady(1e-4 * math.exp(rng.gauss(0, RULES.spread)))

    found = [decide(wild(random.Random(seed)), clock=still).decision for seed in range(500)]
    assert found.count(Decision.SLOWER) <= 20


@settings(max_examples=40, deadline=None)
@given(st.floats(-0.05, 0.05), st.integers(0, 10**6))
def test_exchange_mirrors_the_result(gain: float, seed: int) -> None:
    straight = decide(Gpu(gain, seed), clock=still)
    mirrored = decide(Swapped(Gpu(gain, seed)), clock=still)
    if straight.blocks == mirrored.blocks:
        assert straight.log_ratio == pytest.approx(-(mirrored.log_ratio or 0.0), abs=1e-12)
        assert straight.candidate_seconds == mirrored.base_seconds
    if straight.decision is Decision.FASTER:
        assert mirrored.decision in (Decision.SLOWER, Decision.FUTILE)


@settings(max_examples=40, deadline=None)
@given(st.floats(-0.05, 0.05), st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(gain: float, unit: float) -> None:
    def scaled(index: int) -> Block:
        return Block(tuple((unit * c, unit * b) for c, b in source(index).pairs))

    source = Gpu(gain)
    measured, plain = decide(scaled, clock=still), decide(Gpu(gain), clock=still)
    assert (measured.decision, measured.blocks) == (plain.decision, plain.blocks)
    assert measured.log_ratio == pytest.approx(plain.log_ratio, abs=1e-9)


def test_each_side_begins_one_of_two_blocks() -> None:
    coins = 0b1101
    begun = [candidate_first(i, coins) for i in range(8)]
    assert begun == [True, False, False, True, True, False, True, False]
    assert [candidate_first(i + 128, coins) for i in range(8)] == begun
    assert {candidate_first(i, 0) for i in (-2, 0, 2)} == {False}


@pytest.mark.parametrize("drift", [-0.01, 0.01])
def test_a_machine_that_gets_faster_favours_nobody(drift: float) -> None:
    assert decide(Gpu(drift=drift), clock=still).decision is Decision.FUTILE


def test_confirmation_uses_no_block_of_the_decision() -> None:
    source = Gpu(GAIN)
    decided = decide(source, first_block=5, clock=still)
    used, source.asked = source.asked, []
    confirmed = confirm(source, decided, clock=still)
    assert used == list(range(5, decided.next_block))
    assert source.asked == list(range(decided.next_block, confirmed.next_block))
    assert confirmed.first_block == decided.next_block


def test_a_lucky_decision_does_not_colour_the_confirmation() -> None:
    flattered = [decide(Gpu(0.001, seed, jitter=0.03), clock=still) for seed in range(150)]
    winner = max(flattered, key=lambda t: t.log_ratio or 0.0)
    confirmed = confirm(Gpu(0.001, seed=999, jitter=0.03), winner, clock=still)
    assert winner.log_ratio is not None
    assert winner.log_ratio > 0.005
    assert confirmed.log_ratio == pytest.approx(0.001, abs=0.004)


def test_the_cap_of_blocks_stops_a_noisy_source() -> None:
    rules = RULES.model_copy(update={"max_blocks": 9})
    timing = decide(Gpu(jitter=0.2), rules, clock=still)
    assert timing.decision is Decision.UNDECIDED
    assert timing.blocks == timing.next_block == 9


def test_the_cap_of_seconds_stops() -> None:
    rules = RULES.model_copy(update={"max_seconds": 6.5, "min_blocks": 0})
    assert decide(Gpu(jitter=0.2), rules, clock=Ticks()).blocks == 6
    assert decide(Gpu(jitter=0.2), rules.model_copy(update={"min_blocks": 11}), clock=Ticks()).blocks >= 11
    nothing = decide(Gpu(), RULES.model_copy(update={"max_seconds": 0.0, "min_blocks": 0}), clock=still)
    assert (nothing.blocks, nothing.log_ratio, nothing.lower, nothing.speedup) == (0, None, None, None)
    assert nothing.decision is Decision.UNDECIDED


@pytest.mark.parametrize("blocks", [0, 3, 8, 20])
def test_a_confirmation_cut_short_says_so(blocks: int) -> None:
    rules = CONFIRMATION.model_copy(update={"max_seconds": blocks + 0.5, "min_blocks": 0})
    timing = confirm(Gpu(GAIN, jitter=0.05), decide(Gpu(GAIN), clock=still), rules, clock=Ticks())
    assert timing.blocks == blocks
    assert Flag.IMPRECISE in timing.flags
    assert (timing.lower is None) == (blocks < 4)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 0.0, -1e-4])
@pytest.mark.parametrize("side", [0, 1])
def test_numbers_that_are_no_times_never_win(odd: float, side: int) -> None:
    pair = (odd, 1e-4) if side == 0 else (1e-4, odd)

    def source(index: int) -> Block:
        return Block(((1e-4, 1e-4), pair, (1e-4, 1e-4), (1e-4, 1e-4)))

    decided = decide(source, clock=still)
    confirmed = confirm(source, decided, clock=still)
    for timing in (decided, confirmed):
        assert timing.decision is Decision.UNDECIDED
        assert timing.thrown == {"invalid": timing.next_block - timing.first_block}
        assert {Flag.INVALID, Flag.UNSTEADY} <= set(timing.flags)


@pytest.mark.parametrize("pairs", [(), ((1e-4, 2e-4),)])
def test_too_few_pairs(pairs: tuple[tuple[float, float], ...]) -> None:
    timing = decide(lambda index: Block(pairs), clock=still)
    assert timing.decision is Decision.UNDECIDED
    assert timing.thrown == {"invalid": RULES.max_blocks}


def test_a_constant_source_is_decided_at_once() -> None:
    assert decide(lambda index: steady(), clock=still).decision is Decision.FUTILE
    timing = decide(lambda index: steady(base=1.1e-4), clock=still)
    assert (timing.decision, timing.blocks, timing.lower) == (Decision.FASTER, 4, timing.upper)


def test_a_gain_within_the_margin_is_no_claim() -> None:
    assert decide(lambda index: steady(base=1.004e-4), clock=still).decision is Decision.FUTILE


def test_a_step_of_the_clock_is_no_gain() -> None:
    rules = RULES.model_copy(update={"resolution": 3e-8})
    timing = decide(lambda index: steady(5.00e-6, 5.03e-6), rules, clock=still)
    assert timing.decision is Decision.UNDECIDED


def test_what_the_source_raises_passes_through() -> None:
    def broken(index: int) -> Block:
        if index == 2:
            raise OSError("gone")
        return steady()

    with pytest.raises(OSError, match="gone"):
        decide(broken, clock=still)


def test_a_time_under_the_floor_is_reported_and_flagged() -> None:
    timing = decide(lambda index: steady(1e-5, 1e-4), floor_seconds=2e-5, clock=still)
    assert timing.decision is Decision.FASTER
    assert timing.flags == (Flag.IMPLAUSIBLE,)
    doubtful = decide(lambda index: steady(1e-5, 1e-5), floor_seconds=2e-5, clock=still)
    assert doubtful.flags == (Flag.IMPLAUSIBLE, Flag.BASE_IMPLAUSIBLE)


def clocked(readings: Iterator[float], low: float) -> Callable[[int], Block]:
    """Blocks whose candidate looks twice as fast while the clock is under `low`."""

    def source(index: int) -> Block:
        clock = next(readings)
        return steady(0.5e-4 if clock < low else 1e-4, clock_hz=clock)

    return source


def test_blocks_at_a_low_clock_are_thrown_out() -> None:
    readings = (1.2e9 if index % 3 == 2 else 1.98e9 for index in range(999))
    timing = decide(clocked(readings, 1.9e9), clock=still)
    assert timing.thrown == {"low_clock": 1}
    assert timing.log_ratio == 0


def test_blocks_that_the_gpu_waited_for_are_thrown_out() -> None:
    """The host is late for every second block, and then the candidate looks longer by what the GPU waits."""

    def source(index: int) -> Block:
        late = index % 2 == 1
        return steady(1.5e-4 if late else 1e-4, starved=2 if late else 1)

    timing = decide(source, clock=still)
    assert timing.thrown == {"starved": timing.blocks - 1}
    assert timing.log_ratio == 0


@pytest.mark.parametrize("pairs", [2, 16])
def test_a_call_that_leaves_its_work_out_favours_nobody(pairs: int) -> None:
    """One call of eight takes no time at all; a block of two pairs would have a mean of which that is a third."""
    idle = random.Random(5)

    def source(index: int) -> Block:
        return Block(tuple((1e-6 if idle.random() < 1 / 8 else 1e-3, 1e-3) for _ in range(pairs)))

    timing = decide(source, clock=still)
    assert timing.thrown["uneven"] > 0
    assert timing.log_ratio is None or timing.log_ratio == 0


def test_a_base_that_stumbles_throws_nothing_out() -> None:
    timing = decide(lambda index: Block(((1e-3, 1e-3), (1e-3, 9e-3 if index % 3 == 0 else 1e-3)) * 4), clock=still)
    assert timing.thrown == {}


def test_a_clock_that_settles_lower_is_accepted() -> None:
    readings = (1.98e9 if index < 3 else 1.5e9 for index in range(999))
    timing = decide(lambda index: Block(Gpu(seed=index).__call__(index).pairs, clock_hz=next(readings)), clock=still)
    assert timing.decision is Decision.FUTILE
    assert timing.thrown["low_clock"] <= 3


def test_events_longer_than_the_host_saw_are_impossible() -> None:
    timing = decide(lambda index: steady(host_seconds=6e-4), clock=still)
    assert Flag.HOST_CLOCK in timing.flags
    assert timing.thrown == {"above_host": RULES.max_blocks}


def test_events_that_explain_too_little_of_the_host_time() -> None:
    forged = decide(lambda index: steady(1e-6, 1e-4, host_seconds=5e-3), clock=still)
    assert (forged.decision, Flag.HOST_CLOCK in forged.flags) == (Decision.UNDECIDED, True)
    declared = decide(lambda index: steady(host_seconds=5e-3, untimed_seconds=4e-3), clock=still)
    assert (declared.decision, declared.flags) == (Decision.FUTILE, ())


def test_a_busy_host_now_and_then_is_forgiven() -> None:
    def source(index: int) -> Block:
        return Block(gpu(index).pairs, host_seconds=1.0 if index % 8 == 7 else 2e-3)

    gpu = Gpu()
    timing = decide(source, clock=still)
    assert timing.flags == ()
    assert timing.thrown["below_host"] >= 1


def test_a_timing_refuses_a_decision_that_its_interval_does_not_carry() -> None:
    timing = decide(Gpu(), clock=still)
    with pytest.raises(ValidationError, match="what the interval says"):
        Timing.model_validate({**timing.model_dump(), "decision": "faster"})
    assert Timing.model_validate_json(timing.model_dump_json()) == timing
