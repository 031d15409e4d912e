"""Races of alternatives: the planted joint winner is found, odd measurements lose, caps hold."""

import math
import random
from collections.abc import Mapping

import pytest

from verifier.racing import Choice, race


class Launches:
    """Launch steps with a time for each alternative, noise and a drift; `extra` are joint costs of pairs of steps."""

    def __init__(
        self,
        times: Mapping[int, list[float]],
        extra: Mapping[tuple[int, int, int, int], float] | None = None,
        noise: float = 0.0,
        drift: float = 0.0,
    ) -> None:
        self.times, self.extra, self.noise, self.drift = times, extra or {}, noise, drift
        self.rng = random.Random(3)
        self.calls: list[dict[int, int]] = []

    @property
    def alternatives(self) -> dict[int, int]:
        return {step: len(times) for step, times in self.times.items()}

    def __call__(self, choice: Choice) -> float:
        self.calls.append(dict(choice))
        total = sum(times[choice.get(step, 0)] for step, times in self.times.items())
        total += sum(cost for (a, i, b, j), cost in self.extra.items() if choice[a] == i and choice[b] == j)
        return total * math.exp(self.rng.gauss(0, self.noise) + self.drift * len(self.calls))


def test_the_planted_joint_winner_is_found_through_noise_and_drift() -> None:
    launches = Launches({2: [5, 4, 6, 3.5], 5: [2, 2.5, 1], 9: [1.0]}, noise=0.01, drift=2e-4)
    found = race(launches.alternatives, launches)
    assert found.choice == {2: 3, 5: 2}
    assert found.seconds < found.start_seconds
    assert found.measurements == len(launches.calls)


def test_a_second_sweep_revises_the_first_step() -> None:
    launches = Launches({0: [3.0, 2.0], 1: [3.0, 1.0]}, extra={(0, 1, 1, 1): 1.5})
    found = race(launches.alternatives, launches)
    assert found.choice == {0: 0, 1: 1}
    assert found.sweeps > 1


def test_the_start_stays_where_nothing_is_faster() -> None:
    launches = Launches({0: [1.0, 1.0, 1.0], 4: [2.0, 3.0]})
    found = race(launches.alternatives, launches)
    assert found.choice == {0: 0, 4: 0}
    assert found.seconds == found.start_seconds == 3.0


def test_a_machine_that_slows_down_favours_no_alternative() -> None:
    launches = Launches({0: [1.005, 1.0]}, drift=0.01)
    assert race(launches.alternatives, launches).choice == {0: 1}


def test_a_winner_that_loses_the_last_comparison_is_dropped() -> None:
    calls: list[Choice] = []

    def tiring(choice: Choice) -> float:
        calls.append(choice)
        return 1.0 if choice[0] == 0 else 0.5 + (len(calls) > 8)

    found = race({0: 2}, tiring)
    assert (found.choice, found.seconds) == ({0: 0}, 1.0)


def test_thirty_configurations() -> None:
    times = [1 + 0.05 * abs(i - 22) for i in range(30)]
    launches = Launches({0: times}, noise=0.005)
    assert race({0: 30}, launches).choice == {0: 22}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_an_alternative_that_cannot_run_loses(odd: float) -> None:
    launches = Launches({0: [2.0, odd, 1.0, odd]})
    assert race({0: 4}, launches).choice == {0: 2}


def test_a_start_that_cannot_run_is_left() -> None:
    found = race({0: 2}, Launches({0: [math.nan, 1.0]}))
    assert (found.choice, found.seconds, found.start_seconds) == ({0: 1}, 1.0, math.inf)


def test_when_nothing_runs_the_start_stays() -> None:
    found = race({0: 3}, Launches({0: [math.nan] * 3}))
    assert found.choice == {0: 0}
    assert found.seconds == math.inf


def test_no_alternatives() -> None:
    found = race({3: 1}, Launches({3: [1.5]}))
    assert (found.choice, found.seconds, found.sweeps) == ({}, 1.5, 0)


def test_the_cap_holds() -> None:
    launches = Launches({step: [1.0] * 20 for step in range(10)}, noise=0.05)
    found = race(launches.alternatives, launches, max_measurements=200)
    assert len(launches.calls) <= 200 + 2 * 4 * 4
    assert set(found.choice) == set(range(10))


def test_one_step_changes_at_a_time() -> None:
    launches = Launches({0: [2.0, 1.0], 1: [2.0, 1.0]})
    race(launches.alternatives, launches)
    assert launches.calls[0] == {0: 0, 1: 0}
    first = [c for c in launches.calls[:8] if c[1] == 0]
    assert {c[0] for c in first[:6]} == {0, 1}


def test_what_the_measurement_raises_passes_through() -> None:
    def broken(choice: Choice) -> float:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        race({0: 2}, broken)


@pytest.mark.parametrize("most", [0.0, 3.0, 20.0])
def test_a_race_that_takes_too_long_keeps_the_start(most: float) -> None:
    launches = Launches({0: [3.0, 2.0, 2.5, 2.2], 1: [3.0, 1.0]})
    found = race(launches.alternatives, launches, max_seconds=most, clock=lambda: float(len(launches.calls)))
    assert found.choice == {0: 0, 1: 0}
    assert len(launches.calls) <= most + 1


def test_one_that_is_far_behind_is_measured_once() -> None:
    launches = Launches({0: [1.0, 50.0, 1.1]})
    assert race({0: 3}, launches).choice == {0: 0}
    assert [c[0] for c in launches.calls].count(1) == 1
