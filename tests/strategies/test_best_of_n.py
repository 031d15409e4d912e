from __future__ import annotations

from strategies.base import Operator
from strategies.best_of_n import BestOfN
from strategies.testing import LANDSCAPES, Driver, StrategyConformance


class TestBestOfN(StrategyConformance):
    make = BestOfN


class TestBestOfSeven(StrategyConformance):
    @staticmethod
    def make() -> BestOfN:
        return BestOfN(samples=7)


def test_only_drafts_and_every_slot_busy() -> None:
    driver = Driver(BestOfN(), width=5, budget=12)
    driver.fill()
    assert len(driver.in_flight) == 5
    assert {p.operator for p in driver.run()} == {Operator.DRAFT}


def test_stops_at_its_number_of_samples_failures_included() -> None:
    driver = Driver(BestOfN(samples=7), LANDSCAPES["everything fails"], width=3, budget=40)
    assert len(driver.run()) == 7
    assert driver.strategy.done(driver.view()) == "7 samples drawn"
