from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import ValidationError

from agent.budget import Budget, BudgetError, Ledger, add, refuse_endless
from tools.metering import BudgetExhausted, Charge, Usage
from tools.models.base import Prices


def test_every_axis_is_read() -> None:
    budget = Budget.parse(" calls=24, minutes=1.5,tokens=200k,gpu_seconds=60,dollars=0.25 ")
    assert budget == Budget(calls=24, wall_seconds=90, tokens=200_000, gpu_seconds=60, dollars=0.25)


@pytest.mark.parametrize("text", ["calls=24", "tokens=2M", "minutes=15,calls=3", "dollars=2", "gpu_seconds=0.5"])
def test_a_budget_prints_as_it_is_read(text: str) -> None:
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "calls",
            "calls=",
            "calls=x",
            "calls=-1",
            "calls=0",
            "calls=1.5",
            "calls=nan",
            "tokens=inf",
            "calls=1,,",
        ),
        *(
            "calls=1,calls=2",
            "seconds=3",
            "calls=1;minutes=2",
            "calls==1",
            "tokens=k",
            "tokens=1kk",
            "calls=1e400",
        ),
    ],
)
def test_a_bad_budget_is_named_with_a_next_step(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert repr(text) in str(caught.value)
    assert "--budget" in caught.value.next_step
    assert caught.value.exit_code == 2


def test_a_budget_without_a_cap_cannot_be_made() -> None:
    with pytest.raises(ValidationError):
        Budget()


def test_a_budget_that_no_call_spends_is_refused() -> None:
    with pytest.raises(BudgetError, match="never end"):
        refuse_endless(Budget(dollars=1), [Prices()])
    refuse_endless(Budget(dollars=1), [Prices(output=1)])
    with pytest.raises(BudgetError, match="never end"):
        refuse_endless(Budget(gpu_seconds=1), [Prices(output=1)])
    refuse_endless(Budget(gpu_seconds=1), [Prices(output=1)], measured=True)
    refuse_endless(Budget(dollars=1, calls=3), [Prices()])


def charge(tokens: int = 0, dollars: float = 0.0, calls: int = 1) -> Charge:
    return Charge(calls=calls, usage=Usage(uncached=tokens), dollars=dollars)


def test_a_reservation_counts_until_it_is_settled() -> None:
    ledger = Ledger(Budget(calls=2, tokens=100))
    ledger.reserve("a", charge(60))
    assert ledger.remaining() == {"calls": 0.5, "tokens": 0.4}
    with pytest.raises(BudgetExhausted) as caught:
        ledger.reserve("b", charge(41))
    assert caught.value.axis == "tokens"
    ledger.settle("a", charge(10))
    assert ledger.remaining() == {"calls": 0.5, "tokens": 0.9}
    ledger.reserve("b", charge(90))


def test_the_wall_axis_is_the_clock() -> None:
    now = [0.0]
    ledger = Ledger(Budget(wall_seconds=10), clock=lambda: now[0])
    ledger.reserve("a", charge())
    now[0] = 5.0
    assert ledger.remaining() == {"wall_seconds": 0.5}
    now[0] = 10.0
    with pytest.raises(BudgetExhausted, match="wall_seconds"):
        ledger.reserve("b", charge())


def test_a_hold_gives_way_to_the_dispatch_of_its_request() -> None:
    ledger = Ledger(Budget(calls=1))
    ledger.reserve("a0001/1", charge())
    ledger.reserve("a0001/1@abc#1", charge())
    assert list(ledger.open) == ["a0001/1@abc#1"]
    with pytest.raises(BudgetExhausted):
        ledger.reserve("a0001/2", charge())


def test_settling_twice_charges_once() -> None:
    ledger = Ledger(Budget(calls=9))
    ledger.reserve("a", charge(5))
    for tokens in (3, 4):
        ledger.settle("a", charge(tokens))
    ledger.refund("a", "late")
    ledger.lose("a", "late")
    assert ledger.spent.usage.tokens == 3
    assert [entry.how for entry in ledger.closed] == ["settle"]


def test_a_loss_is_charged_at_its_reservation_and_a_refund_at_nothing() -> None:
    ledger = Ledger(Budget(calls=9))
    for key in ("lost", "refunded"):
        ledger.reserve(key, charge(7))
    ledger.lose("lost", "killed")
    ledger.refund("refunded", "server down")
    assert ledger.spent == charge(7)
    ledger.reserve("refunded", charge(8))
    assert ledger.reserved == charge(8)


def test_an_excess_is_charged_in_full_and_flagged() -> None:
    ledger = Ledger(Budget(tokens=100))
    ledger.reserve("a", charge(50))
    ledger.settle("a", charge(170))
    assert ledger.spent.usage.tokens == 170
    assert ledger.excess == ["a reserved 50 tokens and was charged 170"]
    assert ledger.remaining() == {"tokens": 0.0}


def test_an_unknown_key_is_our_mistake() -> None:
    with pytest.raises(LookupError):
        Ledger(Budget(calls=1)).settle("never", charge())


def test_a_change_that_cannot_be_recorded_does_not_happen() -> None:
    def full(event: dict[str, Any]) -> None:
        raise OSError("disk full")

    ledger = Ledger(Budget(calls=1), record=full)
    with pytest.raises(OSError, match="disk full"):
        ledger.reserve("a", charge())
    assert not ledger.open


def test_unknown_reasoning_is_not_zero() -> None:
    unknown, known = Charge(usage=Usage(output=5)), Charge(usage=Usage(output=5, reasoning=0))
    assert add(unknown, unknown).usage.reasoning is None
    assert add(unknown, known).usage.reasoning == 0


charges = st.builds(charge, st.integers(0, 60), st.floats(0, 2, allow_nan=False), st.integers(0, 2))


class LedgerMachine(RuleBasedStateMachine):
    """Any interleaving of calls, within reservations: caps hold, nothing is negative, a replay gives the same
    ledger.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        self.budget = Budget(calls=8, tokens=200, dollars=5)
        self.ledger = Ledger(self.budget, record=self.events.append)
        self.bounds: dict[str, Charge] = {}
        self.within = True

    @rule(key=st.sampled_from("abcdef"), bound=charges)
    def reserve(self, key: str, bound: Charge) -> None:
        was_open = key in self.ledger.open
        fits = was_open or (self.ledger.short_axis(bound) is None and not self.ledger.excess)
        if not fits:
            with pytest.raises(BudgetExhausted):
                self.ledger.reserve(key, bound)
            assert key not in self.ledger.open
            return
        self.ledger.reserve(key, bound)
        self.bounds[key] = self.bounds[key] if was_open else bound

    @precondition(lambda self: self.bounds)
    @rule(data=st.data(), share=st.floats(0, 1), excess=st.integers(0, 20))
    def settle(self, data: Any, share: float, excess: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.bounds)))
        bound, before = self.bounds[key], self.ledger.spent
        was_open = key in self.ledger.open
        over = excess > 18
        tokens = bound.usage.tokens + excess if over else int(bound.usage.tokens * share)
        actual = charge(tokens, bound.dollars * share, bound.calls)
        self.ledger.settle(key, actual)
        self.within &= not (over and was_open)
        assert self.ledger.spent == (add(before, actual) if was_open else before)
        again = self.ledger.spent
        self.ledger.settle(key, actual)
        assert self.ledger.spent == again

    @precondition(lambda self: self.bounds)
    @rule(data=st.data(), lost=st.booleans())
    def close(self, data: Any, lost: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.bounds)))
        (self.ledger.lose if lost else self.ledger.refund)(key, "test")

    @invariant()
    def caps_hold_unless_a_server_broke_its_bound(self) -> None:
        totals = self.ledger.totals()
        assert bool(self.ledger.excess) != self.within
        if self.within:
            assert all(totals[axis] <= cap for axis, cap in self.budget.caps.items())
        assert all(amount >= 0 for amount in totals.values())
        assert all(0 <= share <= 1 for share in self.ledger.remaining().values())

    @invariant()
    def a_replay_gives_the_same_ledger(self) -> None:
        again = Ledger(self.budget)
        for event in self.events:
            again.apply(event)
        assert (again.spent, again.open, again.closed) == (
            self.ledger.spent,
            self.ledger.open,
            self.ledger.closed,
        )


LedgerMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLedger = LedgerMachine.TestCase


@given(st.lists(charges, max_size=5))
def test_adding_is_exact_on_whole_axes(parts: list[Charge]) -> None:
    total = Charge()
    for part in parts:
        total = add(total, part)
    assert total.calls == sum(p.calls for p in parts)
    assert total.usage.tokens == sum(p.usage.tokens for p in parts)
