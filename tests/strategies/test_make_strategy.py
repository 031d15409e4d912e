"""Names, parameters and entry points; and that the conformance suite itself finds faults."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from strategies import STRATEGIES, make_strategy
from strategies.base import Operator, Outcome, Proposal, SearchView, Strategy
from strategies.beam import Beam
from strategies.best_of_n import BestOfN
from strategies.reflection import Reflection
from strategies.testing import Driver, Stalled, StrategyConformance, impurities
from verifier.errors import UsageError


def test_every_known_name_makes_its_strategy() -> None:
    made = {name: make_strategy(name) for name in STRATEGIES}
    assert {name: type(s) for name, s in made.items()} == {
        "best_of_n": BestOfN,
        "reflection": Reflection,
        "beam": Beam,
    }


@pytest.mark.parametrize(
    "spec",
    [
        "beam(width=2,branching=5)",
        " beam ( width = 2, branching = 5 ) ",
        'beam{"width": 2, "branching": 5}',
        "strategies.beam:Beam(width=2, branching=5)",
    ],
)
def test_parameters(spec: str) -> None:
    beam = make_strategy(spec)
    assert isinstance(beam, Beam)
    assert (beam.width, beam.branching) == (2, 5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bean", "unknown strategy 'bean'; known: beam, best_of_n, reflection"),
        ("beam(widht=2)", "strategy 'beam' has no parameter 'widht'; its parameters: width, branching"),
        ("beam(width=0)", "width must be an integer of at least 1, not 0"),
        ("beam(width=2.5)", "width must be an integer of at least 1, not 2.5"),
        ("beam(width=True)", "width must be an integer of at least 1, not True"),
        ("best_of_n(samples=0)", "samples must be an integer"),
        ("reflection(chains=0)", "chains must be an integer"),
        ("beam(2)", "cannot read the strategy"),
        ("beam(**{})", "cannot read the strategy"),
        ("beam(width=open('x'))", "cannot read the strategy"),
        ("beam(width=2", "cannot read the strategy"),
        ("beam(width=2) + f(x=1)", "cannot read the strategy"),
        ("beam(width=1)(x=2)", "cannot read the strategy"),
        ("beam{[1]}", "cannot read the strategy"),
        ("", "cannot read the strategy"),
        ("no.such.module:Thing", "cannot be loaded"),
        ("strategies.beam:Bean", "cannot be loaded"),
        ("strategies.beam:", "cannot be loaded"),
        ("pathlib:Path", "is not a strategy"),
        ("strategies.beam:__doc__", "is not a class"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_strategy(spec)
    assert message in str(caught.value)


def test_a_strategy_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from strategies.best_of_n import BestOfN\nclass Elsewhere(BestOfN):\n    pass\n"
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[warpsmith.strategies]\nelsewhere = elsewhere:Elsewhere\nbeam = elsewhere:Elsewhere\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert type(make_strategy("elsewhere(samples=3)")).__name__ == "Elsewhere"
    assert type(make_strategy("beam")) is Beam, "an entry point must not replace a strategy of ours"
    with pytest.raises(UsageError, match="known: beam, best_of_n, elsewhere, reflection"):
        make_strategy("nowhere")


class Faulty:
    """A strategy with one fault, to see that the suite finds it."""

    def __init__(self, proposals: list[Proposal] | None = None) -> None:
        self.proposals = proposals or []
        self.seen: list[Outcome] = []

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        return self.proposals

    def observe(self, outcome: Outcome) -> None:
        self.seen.append(outcome)

    def done(self, view: SearchView) -> str | None:
        return None


class Counting(Faulty):
    """Counts repeats: not idempotent."""

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        return [Proposal(Operator.DRAFT, sampling={"temperature": len(self.seen)})] * n


class ZeroForFailure(Faulty):
    """Takes a failure for a score of 0."""

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        best = max(view.archive, key=lambda o: (o.score or 0.0, o.attempt), default=None)
        good = best is not None and best.score is not None
        return [Proposal(Operator.REFINE, (best.attempt,)) if best and good else Proposal(Operator.DRAFT)] * n


def test_the_driver_finds_a_stall() -> None:
    with pytest.raises(Stalled):
        Driver(Faulty()).run()


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        (Proposal(Operator.REFINE, ("ghost",)), "not in the archive"),
        (Proposal(Operator.DRAFT, context=("ghost",)), "not in the archive"),
        (Proposal(Operator.REPAIR), "wrong number of parents"),
    ],
)
def test_the_driver_finds_bad_proposals(proposal: Proposal, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        Driver(Faulty([proposal])).run()
    with pytest.raises(AssertionError, match="5 proposals for 4 slots"):
        Driver(Faulty([Proposal(Operator.DRAFT)] * 5)).run()


def suite_of(make: type[Strategy]) -> StrategyConformance:
    return type("Suite", (StrategyConformance,), {"make": make})()


def test_the_suite_finds_a_strategy_that_counts_repeats() -> None:
    with pytest.raises(AssertionError):
        suite_of(Counting).test_outcomes_come_in_any_order_and_more_than_once()


def test_the_suite_finds_a_failure_taken_for_zero() -> None:
    with pytest.raises(AssertionError):
        suite_of(ZeroForFailure).test_a_failure_is_not_a_score_of_zero()


@pytest.mark.parametrize(
    "source",
    ["import time", "from os import path", "import os.path", "open('x')", "import random\nrandom.random()"],
)
def test_the_suite_finds_input_output_and_chance(source: str) -> None:
    assert impurities(ast.parse(source))
    assert not impurities(ast.parse("import random\nx: random.Random"))
