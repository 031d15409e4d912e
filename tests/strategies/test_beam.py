from __future__ import annotations

import random

import pytest

from strategies.base import Operator, Outcome, Proposal
from strategies.beam import Beam, distinct
from strategies.lineage import Lineage
from strategies.testing import LANDSCAPES, Driver, StrategyConformance
from verifier.verdict import Status


class TestBeam(StrategyConformance):
    make = Beam


class TestBeamOfOne(StrategyConformance):
    @staticmethod
    def make() -> Beam:
        return Beam(width=1, branching=1)


def end(driver: Driver, attempt: str, score: float | None) -> None:
    status = Status.WRONG if score is None else Status.CORRECT
    driver.end(attempt, Outcome(attempt, driver.in_flight[attempt], status, score, f"c{attempt}"))


def test_a_level_that_has_ended_gives_the_classical_beam() -> None:
    driver = Driver(Beam(width=2, branching=3), width=6, budget=100)
    driver.fill()
    for index, score in enumerate([0.1, 0.6, 0.3, 0.2, 0.5, 0.4]):
        end(driver, f"{index:04d}", score)
    driver.fill()
    assert sorted(p.parents for p in driver.in_flight.values()) == [("0001",)] * 3 + [("0004",)] * 3


@pytest.mark.parametrize("seed", range(5))
def test_only_the_top_width_is_expanded(seed: int) -> None:
    width, rng = 3, random.Random(seed)
    driver = Driver(Beam(width, branching=2), LANDSCAPES["everything is correct"], 5, 80, seed)
    while True:
        before = len(driver.transcript)
        if not driver.fill():
            break
        lineage = Lineage.of(driver.view())
        for proposal in driver.transcript[before:]:
            for parent in proposal.parents:
                level = lineage.places[parent].level
                peers = [o for o in driver.archive if lineage.places[o.attempt].level == level]
                top = {o.attempt for o in distinct(peers, lineage)[:width]}
                top |= {o.attempt for o in distinct(driver.archive, lineage)[:width]}
                assert parent in top
        driver.end(rng.choice(sorted(driver.in_flight)))
    assert max(place.level for place in lineage.places.values()) >= 5


def test_a_free_slot_never_waits_for_a_slow_neighbour() -> None:
    driver = Driver(Beam(width=2, branching=2), width=4, budget=200)
    driver.fill()
    rng = random.Random(0)
    for _ in range(60):  # 0000 never ends
        name = rng.choice(sorted(set(driver.in_flight) - {"0000"}))
        driver.end(name)
        driver.fill()
        assert len(driver.in_flight) == 4
    assert max(place.level for place in Lineage.of(driver.view()).places.values()) >= 4


def test_the_quota_of_a_level_holds_while_there_is_work_below_it() -> None:
    driver = Driver(Beam(width=2, branching=3), LANDSCAPES["everything is correct"], 2, 60)
    driver.run()
    lineage = Lineage.of(driver.view())
    levels = [place.level for place in lineage.places.values()]
    assert [levels.count(level) for level in range(max(levels))] == [6] * max(levels)


def test_failures_are_repaired_once_on_their_own_level_before_more_drafts() -> None:
    driver = Driver(Beam(width=1, branching=2), width=2, budget=100)
    driver.fill()
    for name in ("0000", "0001"):
        end(driver, name, None)
    driver.fill()
    assert list(driver.in_flight.values()) == [Proposal(Operator.REPAIR, (p,)) for p in ("0000", "0001")]
    end(driver, "0002", None)
    driver.fill()
    assert driver.in_flight["0004"] == Proposal(Operator.DRAFT)
    end(driver, "0003", 0.1)
    driver.fill()
    assert driver.in_flight["0005"] == Proposal(Operator.REFINE, ("0003",))
    assert Lineage.of(driver.view()).places["0005"].level == 1


def test_a_duplicate_takes_no_second_place_in_the_beam() -> None:
    draft = Proposal(Operator.DRAFT)
    original = Outcome("a", draft, Status.CORRECT, 1.0, "c")
    copies = [
        Outcome("b", draft, Status.CORRECT, 1.0, "c"),
        Outcome("d", draft, Status.CORRECT, 1.0, "other", duplicate_of="c"),
        Outcome("e", draft, Status.CORRECT, 1.0, "third", duplicate_of="a"),
    ]
    driver = Driver(Beam(), archive=[*copies, original])
    assert distinct(driver.archive, Lineage.of(driver.view())) == [original]


def test_a_correct_attempt_without_a_score_ranks_last() -> None:
    draft = Proposal(Operator.DRAFT)
    none = Outcome("a", draft, Status.CORRECT, None, "c1")
    slow = Outcome("b", draft, Status.CORRECT, -3.0, "c2")
    driver = Driver(Beam(), archive=[none, slow])
    assert distinct(driver.archive, Lineage.of(driver.view())) == [slow, none]
