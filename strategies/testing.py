"""The conformance suite of strategies and the small driver that it uses. Needs pytest and hypothesis.

A strategy joins with one line in a test file (the style of `optuna.testing`):

    class TestMine(StrategyConformance):
        make = Mine

The driver runs a strategy against an invented landscape with random completion times. It holds the strategy
to the contract of `base.py` at every step, so every test that drives also checks it.
"""

from __future__ import annotations

import ast
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strategies.base import Operator, Outcome, Proposal, SearchView, Strategy
from strategies.lineage import failed
from verifier.verdict import Status

PARENTS = {
    Operator.DRAFT: (0, 0),
    Operator.REPAIR: (1, 1),
    Operator.REFINE: (1, 1),
    Operator.CROSSOVER: (2, 9),
}
FAILURES = [s for s in Status if s not in (Status.CORRECT, Status.UNTESTED)]
FORBIDDEN_IMPORTS = frozenset(
    {"asyncio", "concurrent", "datetime", "http", "importlib", "io", "logging", "multiprocessing", "os"}
    | {"pathlib", "requests", "secrets", "shutil", "signal", "socket", "subprocess", "sys", "tempfile"}
    | {"threading", "time", "urllib", "uuid"}
)
FORBIDDEN_CALLS = frozenset(("open", "print", "input", "eval", "exec", "__import__"))


class Stalled(AssertionError):
    """Nothing proposed, nothing in flight, not done, and budget left."""


@dataclass(frozen=True, slots=True)
class Landscape:
    """How attempts end. What is left of 1 after the four shares is correct; scores are natural logarithms."""

    failing: float = 0.3
    unparsable: float = 0.05
    duplicate: float = 0.1
    untested: float = 0.0
    shift: float = 0.0
    """Added to every score; a whole number keeps the order of the scores exact."""

    def outcome(self, attempt: str, proposal: Proposal, archive: list[Outcome], seed: int) -> Outcome:
        rng = random.Random(f"{seed}/{attempt}/{proposal}")
        draw, score, candidate = rng.random(), rng.randrange(-64, 65) / 32 + self.shift, f"c{attempt}"
        for share, status, source in (
            (self.unparsable, Status.UNPARSABLE, None),
            (self.failing, rng.choice(FAILURES), candidate),
            (self.untested, Status.UNTESTED, candidate),
        ):
            if draw < share:
                return Outcome(attempt, proposal, status, None, source)
            draw -= share
        correct = sorted((o for o in archive if o.score is not None), key=lambda o: o.attempt)
        if draw < self.duplicate and correct:
            return replace(rng.choice(correct), attempt=attempt, proposal=proposal, duplicate_of=correct[0].candidate)
        return Outcome(attempt, proposal, Status.CORRECT, score, candidate)


LANDSCAPES = {
    "mixed": Landscape(),
    "everything fails": Landscape(failing=1.0, unparsable=0.0),
    "nothing parses": Landscape(failing=0.0, unparsable=1.0),
    "nothing can be tested": Landscape(failing=0.0, unparsable=0.0, untested=1.0),
    "everything is correct": Landscape(failing=0.0, unparsable=0.0, duplicate=0.0),
    "almost all duplicates": Landscape(failing=0.0, unparsable=0.0, duplicate=0.9),
}


@dataclass
class Driver:
    """A search loop of a few lines. `budget` counts attempts; a random attempt in flight ends next."""

    strategy: Strategy
    landscape: Landscape = field(default_factory=Landscape)
    width: int = 4
    budget: int = 40
    seed: int = 0
    archive: list[Outcome] = field(default_factory=list)
    in_flight: dict[str, Proposal] = field(default_factory=dict)
    transcript: list[Proposal] = field(default_factory=list)

    def view(self) -> SearchView:
        left = 1 - len(self.transcript) / self.budget
        rng = random.Random(f"{self.seed}/{len(self.transcript)}")
        return SearchView(tuple(self.archive), dict(self.in_flight), {"calls": left}, self.width, rng)

    def run(self) -> list[Proposal]:
        """All proposals in order. Raises AssertionError where the strategy breaks its contract."""
        rng = random.Random(f"order/{self.seed}")
        while self.fill():
            self.end(rng.choice(sorted(self.in_flight)))
        return self.transcript

    def fill(self) -> bool:
        """Dispatches into the free slots; False when the run is over."""
        room = min(self.width - len(self.in_flight), self.budget - len(self.transcript))
        if room and self.strategy.done(self.view()) is None:
            proposals = self.ask(room)
            if not proposals and not self.in_flight:
                raise Stalled(f"{self.strategy!r} proposes nothing after {len(self.archive)} outcomes")
            for proposal in proposals:
                self.in_flight[f"{len(self.transcript):04d}"] = proposal
                self.transcript.append(proposal)
        return bool(self.in_flight)

    def ask(self, room: int) -> list[Proposal]:
        proposals = self.strategy.propose(self.view(), room)
        assert len(proposals) <= room, f"{len(proposals)} proposals for {room} slots"
        known = {outcome.attempt: outcome for outcome in self.archive}
        for proposal in proposals:
            low, high = PARENTS.get(proposal.operator, (0, 9))
            assert low <= len(proposal.parents) <= high, f"wrong number of parents: {proposal}"
            assert {*proposal.parents, *proposal.context} <= set(known), f"not in the archive: {proposal}"
            parents = [known[name] for name in proposal.parents]
            if proposal.operator is Operator.REPAIR:
                assert failed(parents[0]), f"nothing to repair: {proposal}"
            if proposal.operator is Operator.REFINE:
                assert not failed(parents[0]), f"a failure is refined: {proposal}"
        return proposals

    def end(self, attempt: str, outcome: Outcome | None = None) -> Outcome:
        """Ends an attempt in flight, as the landscape says unless an outcome is given."""
        proposal = self.in_flight.pop(attempt)
        outcome = outcome or self.landscape.outcome(attempt, proposal, self.archive, self.seed)
        self.archive.append(outcome)
        self.strategy.observe(outcome)
        return outcome


examples = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.differing_executors],
)
seeds = st.integers(0, 10**6)
widths = st.integers(1, 9)
budgets = st.integers(1, 60)
landscapes = st.sampled_from(sorted(LANDSCAPES)).map(LANDSCAPES.__getitem__)


class StrategyConformance:
    """Every strategy passes all of these. `make` is the class, or a function without arguments."""

    make: ClassVar[Callable[[], Strategy]]

    def new(self) -> Strategy:
        return type(self).make()

    def test_it_is_a_strategy(self) -> None:
        assert isinstance(self.new(), Strategy)

    @examples
    @given(seeds, widths, budgets, landscapes)
    def test_keeps_the_contract_and_never_stalls(
        self, seed: int, width: int, budget: int, landscape: Landscape
    ) -> None:
        driver = Driver(self.new(), landscape, width, budget, seed)
        driver.run()
        assert len(driver.archive) == budget or driver.strategy.done(driver.view())

    @examples
    @given(seeds, widths, landscapes)
    def test_equal_views_give_equal_proposals(self, seed: int, width: int, landscape: Landscape) -> None:
        runs = [Driver(self.new(), landscape, width, 40, seed).run() for _ in range(2)]
        assert runs[0] == runs[1]

    @examples
    @given(seeds, st.integers(1, 40), landscapes, st.randoms(use_true_random=False))
    def test_outcomes_come_in_any_order_and_more_than_once(
        self, seed: int, budget: int, landscape: Landscape, rng: random.Random
    ) -> None:
        driver = Driver(self.new(), landscape, 4, budget, seed)
        driver.run()
        expected = driver.strategy.propose(driver.view(), 5)
        fresh = self.new()
        told = driver.archive * 2
        rng.shuffle(told)
        for outcome in told:
            fresh.observe(outcome)
        shuffled = list(dict.fromkeys(o.attempt for o in told))
        by_name = {o.attempt: o for o in driver.archive}
        driver.archive = [by_name[name] for name in shuffled]
        assert fresh.propose(driver.view(), 5) == expected

    @examples
    @given(seeds, st.sampled_from([-9.0, 7.0]))
    def test_a_failure_is_not_a_score_of_zero(self, seed: int, shift: float) -> None:
        """Moving all scores by a constant changes no decision, as it would if a failure stood at 0."""
        plain, moved = (Driver(self.new(), Landscape(shift=s), 4, 40, seed).run() for s in (0.0, shift))
        assert plain == moved

    @examples
    @given(seeds)
    def test_two_runs_share_nothing(self, seed: int) -> None:
        alone = Driver(self.new(), width=3, budget=20, seed=seed).run()
        one, other = (Driver(self.new(), width=3, budget=20, seed=s) for s in (seed, seed + 1))
        rng = random.Random(f"order/{seed}")
        while one.fill():
            one.end(rng.choice(sorted(one.in_flight)))
            if other.fill():
                other.end(min(other.in_flight))
        assert one.transcript == alone

    @pytest.mark.parametrize("n", [0, 1, 1000])
    def test_any_number_may_be_asked_for(self, n: int) -> None:
        for view in (Driver(self.new(), width=max(n, 1)).view(), self._busy(n).view()):
            assert len(self.new().propose(view, n)) <= n

    def _busy(self, width: int) -> Driver:
        driver = Driver(self.new(), width=max(width, 1), budget=1000)
        driver.fill()
        return driver

    def test_does_no_input_output_and_reads_no_clock(self) -> None:
        source = Path(inspect.getsourcefile(type(self.new())) or "")
        problems = impurities(ast.parse(source.read_text(encoding="utf-8")))
        assert not problems, f"{source.name}: {problems}"


def impurities(tree: ast.Module) -> list[str]:
    """Imports and calls that a strategy must not have. `random` is there for its type only."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += [node.func.id] if node.func.id in FORBIDDEN_CALLS else []
            continue
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            found += [f"random.{node.attr}"] if node.attr != "Random" else []
            continue
        else:
            continue
        found += [name for name in names if name.partition(".")[0] in FORBIDDEN_IMPORTS]
    return found
