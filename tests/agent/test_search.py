"""The loop with a scripted model and bench: order, charges, ends, and what a resume makes of each end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.asking import ReplayError, StrategyError
from agent.budget import BudgetError, Ledger
from agent.journal import read_events
from agent.record import load_run
from agent.run_folder import RunFolder
from agent.search import Reason, Summary, search
from agent.session import Deps
from agent.stop import Stop
from agent.testing import ScriptedBench, ScriptedModel, Wander, by_seed, make_run, reply, source
from strategies.base import Operator, Outcome, Proposal, SearchView, Strategy
from tools.fleet.local import LocalFleet
from tools.metering import Usage
from tools.models.base import AnswerPending, Completion, ModelError, ModelProfile, ModelRequest
from tools.models.batch import Batch
from tools.models.store import CompletionStore
from verifier.errors import InfrastructureError, StorageError
from verifier.verdict import Status

ROOT = Path(__file__).parents[2]


async def go(
    folder: RunFolder,
    strategy: Strategy | None = None,
    model: ScriptedModel | None = None,
    bench: ScriptedBench | None = None,
    *,
    workers: int = 2,
    on_event: Callable[[Any], None] = lambda event: None,
    stop: Stop | None = None,
) -> Summary:
    with LocalFleet(bench or ScriptedBench(), workers) as fleet:
        deps = Deps(strategy or Wander(), model or ScriptedModel(), fleet)
        return await search(folder, deps, on_event, stop=stop)


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(folder.journal)[0] if e["t"] == kind]


def archive(folder: RunFolder) -> list[tuple[Any, ...]]:
    keys = ("attempt", "status", "score", "candidate", "repairs", "duplicate_of")
    return [tuple(e[k] for k in keys) for e in events(folder, "outcome")]


def always(status: str, speed: float = 1.0) -> Callable[[ModelRequest], str]:
    return lambda request: reply(source(status, speed, request.id))


class Drafts:
    """Independent drafts, until `most` were proposed; None means for ever."""

    def __init__(self, most: int | None = None) -> None:
        self.left = most
        self.outcomes: list[Outcome] = []
        self.views: list[SearchView] = []

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        self.views.append(view)
        n = n if self.left is None else min(n, self.left)
        self.left = None if self.left is None else self.left - n
        return [Proposal(Operator.DRAFT)] * n

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def done(self, view: SearchView) -> str | None:
        return "enough" if self.left == 0 else None


async def test_a_run_ends_with_its_strategy_and_writes_the_best(tmp_path: Path) -> None:
    folder, model = make_run(tmp_path / "run"), ScriptedModel()
    summary = await go(folder, model=model)
    assert (summary.reason, summary.detail, summary.ended) == (Reason.STRATEGY, "all attempts made", 6)
    assert summary.best is not None
    assert summary.best_file == tmp_path / "run" / "best" / "fake.py"
    text = summary.best_file.read_text()
    verdict = json.loads((tmp_path / "run" / "best" / "verdict.json").read_text())
    assert text.startswith("# verdict: correct")
    assert verdict["candidate"] == summary.best.candidate
    assert verdict["score"] == max(o[2] for o in archive(folder) if o[2] is not None)
    assert summary.spent.calls == sum(model.asked.values())
    assert not summary.reserved.calls


async def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    for run in runs:
        await go(run)
    assert archive(runs[0]) == archive(runs[1]) != archive(runs[2])


async def test_repairs_are_charged_and_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", max_repairs=2)
    summary = await go(folder, Drafts(2), ScriptedModel(always("wrong")))
    assert summary.spent.calls == 6
    assert [(o[1], o[4]) for o in archive(folder)] == [("wrong", 2)] * 2


async def test_a_repair_sees_the_source_and_the_feedback_of_the_turn_before(tmp_path: Path) -> None:
    folder, prompts = make_run(tmp_path / "run"), dict[str, str]()

    def script(request: ModelRequest) -> str:
        prompts[request.id] = request.messages[-1].content
        return reply(source("correct" if request.id.endswith("/2") else "wrong", 2.0, request.id))

    await go(folder, Drafts(1), ScriptedModel(script))
    assert source("wrong", 2.0, "a0001/1").strip() in prompts["a0001/2"]
    assert "Status: wrong. as scripted" in prompts["a0001/2"]
    assert "4096" not in "".join(prompts.values()), "a held-out workload was shown"
    assert archive(folder)[0][1:3] == ("correct", pytest.approx(0.693, abs=1e-3))


async def test_an_unparsable_reply_is_an_outcome_charged_and_fed_back(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await go(folder, Drafts(1), ScriptedModel(lambda request: "No code today."))
    run = load_run(folder.path)
    assert run.attempts[0].status is Status.UNPARSABLE
    assert [t.charge.calls for t in run.attempts[0].turns] == [1, 1]
    repair = run.request(run.attempts[0].turns[1])
    assert repair is not None
    assert "no fenced python code block" in repair.messages[-1].content


async def test_nothing_is_dispatched_beyond_the_budget(tmp_path: Path) -> None:
    folder, model = make_run(tmp_path / "run", budget="calls=5", width=4, max_repairs=0), ScriptedModel()
    summary = await go(folder, Drafts(), model)
    assert (summary.reason, summary.detail) == (Reason.BUDGET, "calls")
    assert sum(model.asked.values()) == summary.spent.calls == summary.ended == 5


async def test_tokens_are_reserved_at_their_bound_and_freed_when_settled(tmp_path: Path) -> None:
    folder, model = make_run(tmp_path / "run", budget="tokens=8k", width=4, max_repairs=0), ScriptedModel()
    seen, used = Ledger(folder.manifest.budget), list[float]()

    def on_event(event: Any) -> None:
        seen.apply(event)
        used.append(seen.totals()["tokens"])

    summary = await go(folder, Drafts(), model, on_event=on_event)
    assert (summary.reason, summary.detail) == (Reason.BUDGET, "tokens")
    assert 6000 < max(used) <= 8000
    assert summary.spent.usage.tokens == 150 * summary.ended
    bound = 3000
    assert summary.spent.usage.tokens > 8000 - bound - 2000, "the tail of the budget was left unused"


async def test_a_budget_that_ends_before_a_repair_ends_the_attempt(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", budget="calls=3", max_repairs=5)
    summary = await go(folder, Drafts(), ScriptedModel(always("wrong")))
    assert (summary.reason, summary.spent.calls, summary.ended) == (Reason.BUDGET, 3, 1)
    run = load_run(folder.path)
    assert "no repair" in run.attempts[0].note
    assert len(run.attempts[0].turns) == 3


async def test_a_finished_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    folder, model = make_run(tmp_path / "run"), ScriptedModel()
    first = await go(folder, model=model)
    before = archive(folder)
    again = await go(RunFolder.open(folder.path), model=(silent := ScriptedModel()))
    assert (again.reason, again.best, again.spent) == (first.reason, first.best, first.spent)
    assert archive(folder) == before
    assert not silent.asked


async def test_steady_width_and_outcomes_out_of_order(tmp_path: Path) -> None:
    """The first call is answered only when eight later attempts have ended."""
    folder = make_run(tmp_path / "run", width=4, max_repairs=0)
    others_ended, strategy = asyncio.Event(), Drafts(9)

    class SlowFirst(ScriptedModel):
        async def complete(self, request: ModelRequest) -> Completion:
            if request.id == "a0001/1":
                await others_ended.wait()
            return await super().complete(request)

    def on_event(event: Any) -> None:
        if event["t"] == "outcome" and len(strategy.outcomes) == 7:
            others_ended.set()

    await asyncio.wait_for(go(folder, strategy, SlowFirst(always("correct", 2.0)), on_event=on_event), 30)
    order = [o[0] for o in archive(folder)]
    assert order[-1] == "a0001"
    assert sorted(order) == [f"a{n:04d}" for n in range(1, 10)]
    assert max(len(view.in_flight) for view in strategy.views) == 3, "asked only when a slot is free"
    assert [o.attempt for o in strategy.outcomes] == order
    again = Drafts(9)
    await go(folder, again, ScriptedModel())
    assert again.outcomes == strategy.outcomes


async def test_a_stalled_strategy_is_named(tmp_path: Path) -> None:
    class Idle(Drafts):
        def propose(self, view: SearchView, n: int) -> list[Proposal]:
            return []

    with pytest.raises(StrategyError, match=r"wander stalled") as caught:
        await go(make_run(tmp_path / "run"), Idle())
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("proposals", "complaint"),
    [
        ([Proposal(Operator.DRAFT)] * 3, "asked for 1 proposals and made 3"),
        ([Proposal(Operator.REFINE, parents=("a0099",))], "a0099, which has not ended"),
        ([Proposal(Operator.REFINE)], "needs more parents"),
        ([Proposal(Operator.DRAFT, model="other")], "model 'other'"),
        ([Proposal(Operator.DRAFT, sampling={"heat": 1.0})], "sampling parameters"),
    ],
)
async def test_a_strategy_that_breaks_its_contract_is_refused(
    tmp_path: Path, proposals: list[Proposal], complaint: str
) -> None:
    class Bad(Drafts):
        def propose(self, view: SearchView, n: int) -> list[Proposal]:
            return proposals

    model = ScriptedModel()
    with pytest.raises(StrategyError, match=complaint):
        await go(make_run(tmp_path / "run"), Bad(), model)
    assert not model.asked


async def test_a_strategy_that_answers_differently_is_caught_on_resume(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await go(folder, Wander(4))

    class Changed(Wander):
        def propose(self, view: SearchView, n: int) -> list[Proposal]:
            made = super().propose(view, n)
            return [Proposal(Operator.DRAFT, sampling={"temperature": 0.5}) for _ in made]

    before = folder.journal.read_bytes()
    with pytest.raises(ReplayError, match="does not repeat its proposals"):
        await go(folder, Changed(4))
    assert folder.journal.read_bytes() == before


async def test_a_changed_outcome_in_the_journal_is_caught_on_resume(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await go(folder, Wander(4), ScriptedModel(always("correct", 2.0)))
    folder.journal.write_text(folder.journal.read_text().replace('"repairs":0', '"repairs":1', 1))
    with pytest.raises(ReplayError, match="does not repeat its view"):
        await go(folder, Wander(4))


async def test_an_excess_is_charged_flagged_and_stops_the_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", width=2)
    model = ScriptedModel(usage=Usage(uncached=10, output=99_000))
    summary = await go(folder, Drafts(), model)
    assert summary.reason is Reason.EXCESS
    assert "was charged 99010" in summary.detail
    assert summary.spent.usage.tokens == 99_010 * sum(model.asked.values())
    assert sum(model.asked.values()) <= 2, "a call was dispatched after the excess"
    assert load_run(folder.path).excess


async def test_infrastructure_faults_are_run_again_and_never_shown(tmp_path: Path) -> None:
    folder, strategy = make_run(tmp_path / "run"), Drafts(2)
    bench = ScriptedBench(faults={"compile": 1, "test": 1})
    summary = await go(folder, strategy, model := ScriptedModel(always("correct", 2.0)), bench)
    assert summary.reason is Reason.STRATEGY
    assert [o.status for o in strategy.outcomes] == [Status.CORRECT] * 2
    assert set(model.asked.values()) == {1}, "the fault of a worker does not repeat a paid call"
    assert [e["error"] for e in events(folder, "infra")] == [
        "the compile worker broke",
        "the test worker broke",
    ]


async def test_the_third_fault_of_an_attempt_ends_the_session_and_a_resume_goes_on(tmp_path: Path) -> None:
    folder, strategy = make_run(tmp_path / "run"), Drafts(1)
    with pytest.raises(InfrastructureError, match="the profile worker broke"):
        await go(folder, strategy, ScriptedModel(always("correct", 2.0)), ScriptedBench(faults={"profile": 3}))
    assert not strategy.outcomes
    assert load_run(folder.path).stop_reason == "error"
    summary = await go(folder, Drafts(1), silent := ScriptedModel())
    assert (summary.reason, summary.ended) == (Reason.STRATEGY, 1)
    assert not silent.asked


async def test_a_model_that_fails_is_refunded(tmp_path: Path) -> None:
    folder, failures = make_run(tmp_path / "run", budget="calls=3"), iter(range(2))

    def script(request: ModelRequest) -> str:
        if next(failures, None) is not None:
            raise ModelError("the server is down")
        return by_seed(request)

    summary = await go(folder, Drafts(1), ScriptedModel(script))
    assert (summary.ended, len(load_run(folder.path).refunds)) == (1, 2)
    assert summary.spent.calls == len(load_run(folder.path).attempts[0].turns)


async def test_a_source_that_was_judged_before_is_not_judged_again(tmp_path: Path) -> None:
    folder, bench = make_run(tmp_path / "run", width=3, max_repairs=0), ScriptedBench(seconds=0.02)
    same = ScriptedModel(lambda request: reply(source("correct", 2.0)))
    await go(folder, Drafts(5), same, bench)
    assert bench.calls["compile"] == bench.calls["verdict"] == 1
    run = load_run(folder.path)
    first = next(a for a in run.attempts if a.order == 0)
    assert [a.duplicate_of for a in run.attempts if a is not first] == [first.id] * 4
    verdicts = [a.turns[0].verdict for a in run.attempts if a is not first]
    assert all(v is not None and v.duplicate_of == v.candidate and v.ok for v in verdicts)


async def test_a_given_candidate_is_judged_first_and_costs_nothing(tmp_path: Path) -> None:
    given = source("correct", 3.0, "by hand")
    folder, strategy = make_run(tmp_path / "run", init=given, width=2), Wander(2)
    await go(folder, strategy, model := ScriptedModel(always("correct", 2.0)))
    run = load_run(folder.path)
    init = run.attempt("a0000")
    assert (init.operator, init.order, init.status, init.spent) == (
        "init",
        0,
        Status.CORRECT,
        run.attempts[0].spent,
    )
    assert init.spent is not None
    assert init.spent.calls == 0
    assert run.best == "a0000"
    assert folder.best_file().read_text() == given
    assert sum(model.asked.values()) == run.spent.calls == 2
    assert "a0000" in strategy.seen


async def test_a_given_candidate_that_fails_is_not_repaired_by_itself(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", init=source("wrong"))
    await go(folder, Drafts(1), ScriptedModel(always("correct", 2.0)))
    assert [(o[0], o[1]) for o in archive(folder)] == [("a0000", "wrong"), ("a0001", "correct")]


async def test_minutes_end_a_run_promptly_and_are_counted_over_sessions(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", budget="minutes=0.02")
    summary = await asyncio.wait_for(go(folder, Drafts(), ScriptedModel(delay=lambda request: 300.0)), 60)
    assert (summary.reason, summary.detail) == (Reason.BUDGET, "wall_seconds")
    assert summary.spent.calls == 1, "a call in flight at the end is charged as lost"
    assert len(load_run(folder.path).lost) == 1
    again = await go(folder, Drafts(), model := ScriptedModel())
    assert (again.reason, again.ended, dict(model.asked)) == (Reason.BUDGET, 0, {})


def test_a_budget_that_never_ends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="never end"):
        asyncio.run(go(make_run(tmp_path / "run", budget="gpu_seconds=5")))


class Answers:
    """Scripts a batch model: a request without an answer in `given` waits."""

    def __init__(self) -> None:
        self.given: set[str] = set()

    def __call__(self, request: ModelRequest) -> str:
        if request.id not in self.given:
            raise AnswerPending(request)
        return reply(source("correct" if request.id.endswith("/2") else "wrong", 2.0, request.id))


async def test_a_batch_run_waits_and_goes_on_with_partial_answers(tmp_path: Path) -> None:
    folder, answers = make_run(tmp_path / "run", width=3), Answers()
    first = await go(folder, Wander(3), ScriptedModel(answers))
    assert (first.reason, first.waiting) == (Reason.WAITING, ("a0001/1", "a0002/1", "a0003/1"))
    assert (first.spent.calls, first.reserved.calls) == (0, 3)
    assert {a.state for a in load_run(folder.path).attempts} == {"waiting"}
    answers.given = {"a0002/1"}
    second = await go(folder, Wander(3), ScriptedModel(answers))
    assert (second.waiting, second.spent.calls, second.reserved.calls) == (
        ("a0001/1", "a0003/1", "a0002/2"),
        1,
        3,
    )
    nothing = await go(folder, Wander(3), ScriptedModel(answers))
    assert sorted(nothing.waiting) == sorted(second.waiting)
    answers.given |= {"a0002/2", "a0001/1", "a0003/1", "a0001/2", "a0003/2"}
    last = await go(folder, Wander(3), ScriptedModel(answers))
    assert (last.reason, last.ended, last.spent.calls, last.reserved.calls) == (Reason.STRATEGY, 3, 6, 0)
    assert not load_run(folder.path).lost


async def test_the_batch_model_waits_and_is_answered_by_hand(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", width=2)

    async def session() -> Summary:
        with LocalFleet(ScriptedBench(), 1) as fleet:
            batch = Batch(ModelProfile(name="by-hand", model="hand", max_tokens=1000), folder.path)
            return await search(folder, Deps(Drafts(2), batch, fleet))

    first = await session()
    batch = Batch(ModelProfile(name="by-hand", model="hand", max_tokens=1000), folder.path)
    assert tuple(r.id for r in batch.waiting()) == first.waiting == ("a0001/1", "a0002/1")
    batch.answer("a0002/1", reply(source("correct", 2.0, "two")))
    second = await session()
    assert (second.reason, second.waiting, second.spent.calls) == (Reason.WAITING, ("a0001/1",), 1)
    assert second.reserved.calls == 1
    batch.answer("a0001/1", reply(source("correct", 3.0, "one")))
    last = await session()
    assert (last.reason, last.ended, last.spent.calls, last.reserved.calls) == (Reason.STRATEGY, 2, 2, 0)
    assert [o[0] for o in archive(folder)] == ["a0002", "a0001"]


@pytest.mark.parametrize("lose_checkpoint", [False, True])
async def test_a_stop_drains_and_a_resume_asks_for_nothing_twice(tmp_path: Path, lose_checkpoint: bool) -> None:
    whole = make_run(tmp_path / "whole", max_repairs=2)
    await go(whole, model=ScriptedModel(always("wrong")))
    folder, stop = make_run(tmp_path / "run", max_repairs=2), Stop()

    def on_event(event: Any) -> None:
        if event["t"] == "stage" and event["attempt"] == "a0002" and event["stage"] == "test":
            stop.request()

    first = await go(folder, model=(one := ScriptedModel(always("wrong"))), on_event=on_event, stop=stop)
    assert (first.reason, first.ended) == (Reason.INTERRUPTED, 1)
    assert first.reserved.calls == 0
    if lose_checkpoint:
        for path in folder.path.glob("checkpoint.sqlite*"):
            path.unlink()
    bench = ScriptedBench()
    await go(folder, model=(two := ScriptedModel(always("wrong"))), bench=bench)
    assert not set(one.asked) & set(two.asked)
    assert archive(folder) == archive(whole)


async def test_a_damaged_checkpoint_is_put_aside(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await go(folder, Wander(2))
    folder.checkpoint.write_bytes(b"this is no database" * 99)
    summary = await go(folder, Wander(2))
    assert summary.reason is Reason.STRATEGY
    assert folder.checkpoint.with_suffix(".damaged").exists()


async def both_in_flight(folder: RunFolder) -> None:
    while len(CompletionStore(folder.path).sent_unanswered()) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_a_second_request_cancels_calls_in_flight(tmp_path: Path) -> None:
    folder, stop = make_run(tmp_path / "run", width=2), Stop()
    task = asyncio.create_task(go(folder, Drafts(2), ScriptedModel(delay=lambda request: 300.0), stop=stop))
    await both_in_flight(folder)
    stop.request()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(task), 0.1)
    stop.request()
    summary = await asyncio.wait_for(task, 60)
    assert (summary.reason, summary.spent.calls, summary.ended) == (Reason.INTERRUPTED, 2, 0)
    again = await go(folder, Drafts(2), ScriptedModel(always("correct", 2.0)))
    assert (again.reason, again.ended, again.spent.calls) == (Reason.STRATEGY, 2, 4)


async def test_cancelling_the_search_leaves_a_resumable_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", width=2)
    task = asyncio.create_task(go(folder, Drafts(2), ScriptedModel(delay=lambda request: 30.0)))
    await both_in_flight(folder)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert load_run(folder.path).stop_reason == "error"
    assert (await go(folder, Drafts(2))).reason is Reason.STRATEGY


def child(program: str) -> subprocess.Popen[str]:
    text = "import asyncio, resource, sys\nfrom pathlib import Path\nfrom agent.search import *\n"
    text += "from agent.testing import *\n"
    text += "from tools.fleet.local import LocalFleet\n" + textwrap.dedent(program)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", text], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


async def test_ctrl_c_stops_cleanly_and_the_loop_never_loaded_torch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    process = child(
        f"""
        async def main():
            model = ScriptedModel(delay=lambda request: 0.2)
            with LocalFleet(ScriptedBench(), 1) as fleet:
                deps = Deps(Wander(99), model, fleet)
                summary = await search(RunFolder.open(Path({str(folder.path)!r})), deps)
            print(summary.reason, {{"torch", "triton", "openai"}} & set(sys.modules))
        asyncio.run(main())
        """
    )
    while not (folder.journal.exists() and events(folder, "turn")):
        assert process.poll() is None, process.communicate()[1]
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.to_thread(process.communicate, timeout=60)
    assert (out.strip(), err) == ("interrupted set()", "")
    assert (await go(folder, Wander(99), ScriptedModel(), stop=stopped())).reason is Reason.INTERRUPTED


def stopped() -> Stop:
    stop = Stop()
    stop.request()
    return stop


def test_a_full_disk_is_a_storage_error_and_nothing_is_lost(tmp_path: Path) -> None:
    """A limit on the size of files: first the checkpoint cannot be made, then it fills up in the middle of
    the run.
    """
    folder = make_run(tmp_path / "run")
    process = child(
        f"""
        async def main():
            with LocalFleet(ScriptedBench(), 1) as fleet:
                deps = Deps(Wander(20), ScriptedModel(), fleet)
                await search(RunFolder.open(Path({str(folder.path)!r})), deps)
        for limit in (12_000, 600_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                asyncio.run(main())
            except StorageError as error:
                print("storage", bool(error.next_step))
        """
    )
    out, err = process.communicate(timeout=120)
    assert (out.split("\n"), err) == (["storage True", "storage True", ""], "")
    before = archive(folder)
    kept = {d.request for d in CompletionStore(folder.path).dispatches() if d.state == "answered"}
    asyncio.run(go(folder, Wander(20), model := ScriptedModel()))
    assert not kept & set(model.asked)
    whole = make_run(tmp_path / "whole")
    asyncio.run(go(whole, Wander(20)))
    assert archive(folder) == archive(whole)
    assert 1 < len(before) < 20


async def test_a_journal_cut_anywhere_is_rebuilt_without_a_request(tmp_path: Path) -> None:
    """Stronger than a kill: the journal loses its tail while completions and checkpoint are ahead."""
    whole = make_run(tmp_path / "run")
    await go(whole, Wander(3))
    data, expected = whole.journal.read_bytes(), archive(whole)
    cuts = [i + 1 for i, byte in enumerate(data) if byte == 10][:-1]
    for cut in cuts[:: max(1, len(cuts) // 12)]:
        whole.journal.write_bytes(data[: cut + 7])
        await go(whole, Wander(3), model := ScriptedModel())
        assert not model.asked
        assert archive(whole) == expected


async def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    task = asyncio.create_task(go(folder, model=ScriptedModel(delay=lambda request: 0.05)))
    while not folder.journal.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    with pytest.raises(StorageError, match="another process"):
        await go(folder)
    assert (await task).reason is Reason.STRATEGY


async def test_a_checkpoint_holds_ids_only(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", max_repairs=0)
    long = "x" * 50_000
    await go(folder, Drafts(4), ScriptedModel(lambda request: reply(source("correct", 2.0, request.id + long))))
    size = sum(path.stat().st_size for path in folder.path.glob("checkpoint.sqlite*"))
    assert size / 4 < 60_000
    assert all(b"x" * 1000 not in path.read_bytes() for path in folder.path.glob("checkpoint.sqlite*"))
