from __future__ import annotations

from strategies.base import Operator, Outcome, Proposal
from strategies.lineage import Lineage
from strategies.reflection import Reflection, trajectories
from strategies.testing import LANDSCAPES, Driver, StrategyConformance
from verifier.verdict import Status


class TestReflection(StrategyConformance):
    make = Reflection


class TestOneChain(StrategyConformance):
    @staticmethod
    def make() -> Reflection:
        return Reflection(chains=1, patience=2)


def end(driver: Driver, status: Status, score: float | None = None) -> list[Proposal]:
    """Ends the only attempt in flight and returns what is proposed next."""
    (attempt,) = driver.in_flight
    driver.end(attempt, Outcome(attempt, driver.in_flight[attempt], status, score, f"c{attempt}"))
    driver.fill()
    return list(driver.in_flight.values())


def test_repairs_failures_with_the_failing_parent_and_refines_what_is_correct() -> None:
    driver = Driver(Reflection(), width=1)
    driver.fill()
    assert end(driver, Status.WRONG) == [Proposal(Operator.REPAIR, ("0000",))]
    assert end(driver, Status.COMPILE_ERROR) == [Proposal(Operator.REPAIR, ("0001",))]
    assert end(driver, Status.CORRECT, -0.5) == [Proposal(Operator.REFINE, ("0002",))]
    assert end(driver, Status.CORRECT, 0.5) == [Proposal(Operator.REFINE, ("0003",))]


def test_the_best_rides_along_once_the_chain_has_left_it() -> None:
    driver = Driver(Reflection(), width=1)
    driver.fill()
    end(driver, Status.CORRECT, 1.0)
    assert end(driver, Status.CORRECT, 0.5) == [Proposal(Operator.REFINE, ("0001",), ("0000",))]
    assert end(driver, Status.TIMEOUT) == [Proposal(Operator.REPAIR, ("0002",), ("0000",))]


def test_a_stagnating_trajectory_is_given_up() -> None:
    driver = Driver(Reflection(patience=3), width=1)
    driver.fill()
    end(driver, Status.CORRECT, 1.0)
    for status in (Status.WRONG, Status.CORRECT):  # slower than before is no progress
        (proposal,) = end(driver, status, 0.5 if status is Status.CORRECT else None)
        assert proposal.operator is not Operator.DRAFT
    assert end(driver, Status.WRONG) == [Proposal(Operator.DRAFT)]


def test_the_first_correct_kernel_is_progress_however_slow() -> None:
    driver = Driver(Reflection(patience=2), width=1)
    driver.fill()
    end(driver, Status.WRONG)
    assert end(driver, Status.CORRECT, -9.0)[0].operator is Operator.REFINE
    assert end(driver, Status.WRONG)[0].operator is Operator.REPAIR


def test_untested_is_refined_not_repaired() -> None:
    driver = Driver(Reflection(), width=1)
    driver.fill()
    assert end(driver, Status.UNTESTED) == [Proposal(Operator.REFINE, ("0000",))]


def test_one_trajectory_a_slot_and_none_waits_for_another() -> None:
    driver = Driver(Reflection(patience=10**6), LANDSCAPES["everything is correct"], width=4, budget=100)
    driver.fill()
    for _ in range(20):
        driver.end(next(name for name in sorted(driver.in_flight, reverse=True) if name != "0000"))
        driver.fill()
        assert len(driver.in_flight) == 4
    chains = trajectories(Lineage.of(driver.view()))
    assert len(chains) == 4
    assert ["0000"] in chains


def test_a_global_chain_leaves_the_other_slots_empty() -> None:
    driver = Driver(Reflection(chains=1), width=4, budget=10)
    driver.fill()
    assert len(driver.in_flight) == 1
    driver.run()
    (first, *_) = trajectories(Lineage.of(driver.view()))
    assert len(first) > 1
