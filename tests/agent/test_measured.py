"""A search with GPUs: a new best is confirmed and examined, its seconds are charged once, and an estimated run that
goes on with a GPU is judged anew. Verdicts are scripted.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.history import History
from agent.journal import read_events
from agent.judging import Judge
from agent.record import RunRecord, load_run
from agent.run_folder import RunFolder
from agent.search import Reason, Summary, search
from agent.session import Deps
from agent.stop import Stop
from agent.testing import ScriptedBench, ScriptedGpu, ScriptedModel, Wander, by_seed, make_run, reply, source
from experiments.report import render
from strategies.base import Operator, Outcome, Proposal, SearchView
from tools.fleet.local import LocalFleet
from tools.models.base import ModelRequest
from verifier.candidate import Candidate
from verifier.errors import InfrastructureError, UsageError
from verifier.verdict import Stage, Status

Scripted = Callable[[ModelRequest], str]


class Drafts:
    """`most` independent drafts. Keeps what it observed."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most
        self.outcomes: list[Outcome] = []

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        n = min(n, self.left)
        self.left -= n
        return [Proposal(Operator.DRAFT)] * n

    def observe(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def done(self, view: SearchView) -> str | None:
        return None if self.left else "enough"


async def go(
    folder: RunFolder, script: Scripted, strategy: Drafts | Wander, gpu: ScriptedGpu | None = None, **options: Any
) -> Summary:
    devices = [gpu] if gpu else []
    with LocalFleet(options.pop("bench", None) or ScriptedBench(), 2, devices) as fleet:
        deps = Deps(strategy, ScriptedModel(script), fleet, devices=tuple(gpu.prepare() for gpu in devices))
        return await search(RunFolder.open(folder.path), deps, **options)


def drawn(*sources: str) -> Scripted:
    """The n-th attempt answers with the n-th source, and its repair is wrong."""
    return lambda request: reply(
        sources[int(request.id[1:5]) - 1] if request.id.endswith("/1") else source("wrong", note=request.id)
    )


def gpu_spent(record: RunRecord) -> float:
    """Seconds that the verdicts themselves tell of."""
    return sum(sum(turn.gpu.values()) for attempt in record.attempts for turn in attempt.turns)


def factors(record: RunRecord) -> list[float | None]:
    return [None if a.score is None else round(math.exp(a.score), 3) for a in record.attempts]


async def test_only_a_new_best_is_confirmed_and_examined(tmp_path: Path) -> None:
    folder, gpu = make_run(tmp_path / "run", measured=True), ScriptedGpu()
    script = drawn(source(speed=2.0), source(speed=1.5), source(speed=3.0, confirm="correct 2.5"), source(speed=2.4))
    strategy = Drafts(4)
    summary = await go(folder, script, strategy, gpu)
    record = load_run(folder.path)
    assert factors(record) == [2.0, 1.5, 2.5, 2.4]
    assert [o.confirmed for o in strategy.outcomes] == [True, False, True, False]
    assert gpu.calls == {"visit": 4, "confirm": 2, "compare_file": 2, "examine": 2}
    assert (record.best, summary.measured, summary.anew) == ("a0003", True, 0)
    stages = [attempt.turns[-1].verdict.stage for attempt in record.attempts if attempt.turns[-1].verdict]
    assert stages == [Stage.CONFIRMATION, Stage.TIMING] * 2
    assert "[counted]: as the counters say" in record.attempts[0].turns[-1].feedback
    assert "[counted]" not in record.attempts[1].turns[-1].feedback


async def test_what_is_not_wanted_any_more_when_a_gpu_is_free_is_not_asked() -> None:
    candidate, gpu = Candidate(source=source(speed=2.0)), ScriptedGpu()
    with LocalFleet(ScriptedBench(), 1, [gpu]) as fleet:
        judge = Judge(fleet, History(measured=True))
        assert not await judge.look("confirm", candidate, "a0001", lambda: False)
        assert not (await judge.verdict(candidate, "a0001")).confirmed
        assert await judge.look("confirm", candidate, "a0001", lambda: True)
        assert (await judge.verdict(candidate, "a0001")).confirmed
    assert gpu.calls == {"visit": 1, "confirm": 1}


async def test_the_luckiest_first_score_is_not_the_best(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measured=True)
    lucky = source(speed=1.0, visit="correct 9.0", confirm="correct 1.2")
    await go(folder, drawn(source(speed=2.0), lucky), Drafts(2), ScriptedGpu())
    record = load_run(folder.path)
    assert (record.best, factors(record)) == ("a0001", [2.0, 1.2])


@pytest.mark.parametrize(("call", "status"), [("confirm", "wrong"), ("examine", "out_of_bounds")])
async def test_what_does_not_hold_up_is_not_correct_and_is_repaired(tmp_path: Path, call: str, status: str) -> None:
    folder = make_run(tmp_path / "run", measured=True)
    cheat = source(speed=9.0, **{call: status})
    await go(folder, drawn(source(speed=2.0), cheat), Drafts(2), ScriptedGpu())
    record = load_run(folder.path)
    assert (record.best, factors(record)) == ("a0001", [2.0, None])
    first, second = record.attempts[1].turns
    assert first.verdict is not None
    assert (str(first.verdict.status), first.verdict.stage) == (status, Stage.CONFIRMATION)
    assert first.verdict.reason in first.feedback
    request = record.request(second)
    assert request is not None
    assert first.verdict.reason in request.messages[-1].content


async def test_every_leased_second_is_charged_once_and_told_by_call(tmp_path: Path) -> None:
    folder, gpu = make_run(tmp_path / "run", measured=True, width=2), ScriptedGpu(seconds=0.01)
    await go(folder, by_seed, Wander(8), gpu)
    record = load_run(folder.path)
    told: defaultdict[str, float] = defaultdict(float)
    for attempt in record.attempts:
        for turn in attempt.turns:
            for call, seconds in turn.gpu.items():
                told[call] += seconds
            assert turn.charge.gpu_seconds == pytest.approx(sum(turn.gpu.values()))
    assert set(told) == {"visit", "confirm", "file", "examine"}
    assert all(told[call] >= 0.01 * gpu.calls[call] for call in ("visit", "confirm", "examine"))
    assert record.spent.gpu_seconds == pytest.approx(gpu_spent(record))
    assert (record.reserved.gpu_seconds, record.refunds, record.lost) == (0.0, (), ())


@pytest.mark.parametrize("call", ["visit", "confirm", "compare_file", "examine"])
async def test_a_call_that_fails_through_our_fault_costs_nothing(tmp_path: Path, call: str) -> None:
    folder, gpu = make_run(tmp_path / "run", measured=True), ScriptedGpu(seconds=0.1, faults={call: 1})
    await go(folder, drawn(source(speed=2.0)), Drafts(1), gpu)
    record = load_run(folder.path)
    assert record.faults == (f"the {call} worker broke",)
    assert (record.best, gpu.calls[call]) == ("a0001", 2)
    part = call.removeprefix("compare_")
    assert 0.1 <= record.attempts[0].turns[0].gpu[part] < 1.0, "the call that failed is not in it"
    assert record.spent.gpu_seconds == pytest.approx(gpu_spent(record))


async def test_a_budget_without_room_for_a_verdict_starts_nothing(tmp_path: Path) -> None:
    folder, gpu = make_run(tmp_path / "run", measured=True, budget="gpu_seconds=119"), ScriptedGpu()
    summary = await go(folder, drawn(source(speed=2.0)), Drafts(1), gpu)
    assert (summary.reason, summary.detail, summary.spent.calls) == (Reason.BUDGET, "gpu_seconds", 0)


async def test_a_budget_without_room_for_a_closer_look_says_so(tmp_path: Path) -> None:
    folder, gpu = make_run(tmp_path / "run", measured=True, budget="gpu_seconds=130"), ScriptedGpu()
    await go(folder, drawn(source(speed=2.0)), Drafts(1), gpu)
    (attempt,) = load_run(folder.path).attempts
    verdict = attempt.turns[0].verdict
    assert gpu.calls == {"visit": 1, "confirm": 1}
    assert verdict is not None
    assert verdict.confirmed
    assert verdict.profile is not None
    told = {d.code: d.message for d in verdict.profile.diagnosis}
    assert set(told) == {"file-not-run", "not-examined"}
    assert "does not fit the budget's gpu_seconds" in told["not-examined"]
    assert "does not fit" not in attempt.turns[0].feedback, "it is nothing that a model could mend"


async def test_a_repair_without_room_on_the_gpu_ends_the_attempt(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measured=True, budget="gpu_seconds=120.05", max_repairs=3)
    await go(folder, drawn(source(visit="wrong")), Drafts(1), ScriptedGpu(seconds=0.06))
    record = load_run(folder.path)
    assert record.attempts[0].note.startswith("no repair: ")
    assert (record.spent.calls, record.reserved.gpu_seconds) == (1, 0.0)


async def test_a_closer_look_can_be_left_out(tmp_path: Path) -> None:
    folder, gpu = make_run(tmp_path / "run", measured=True, examine=False), ScriptedGpu()
    await go(folder, drawn(source(speed=2.0)), Drafts(1), gpu)
    assert gpu.calls == {"visit": 1, "confirm": 1, "compare_file": 1}


async def test_a_measured_run_needs_its_gpu(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measured=True)
    await go(folder, drawn(source(speed=2.0)), Drafts(1), ScriptedGpu())
    before = folder.journal.read_bytes()
    with pytest.raises(UsageError, match="measures on a GPU, and none is chosen"):
        await go(folder, drawn(source(speed=2.0)), Drafts(1))
    assert folder.journal.read_bytes() == before


async def test_a_file_that_does_something_else_ships_its_plan(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measured=True, width=1)
    script = drawn(source(speed=2.0, file="different"), source(speed=3.0))
    await go(folder, script, Drafts(1), ScriptedGpu())
    assert json.loads((folder.best / "plan" / "plan.json").read_text()) == {"of": folder.best_file().read_text()}
    assert (folder.best / "plan" / "blobs" / "k.cubin").read_bytes() == b"binary"
    assert "class ModelNew" in (folder.best / "kernel.py").read_text()
    assert "verifier.gpu.replay_once" in (folder.best / "replay.py").read_text()
    verdict = load_run(folder.path).attempts[0].turns[0].verdict
    assert verdict is not None
    assert (verdict.confirmed, verdict.ships_plan) == (True, True)
    assert "the plan is what was judged, and what ships" in render(load_run(folder.path))
    other = make_run(tmp_path / "other", measured=True)
    await go(other, script, Drafts(2), ScriptedGpu())
    assert sorted(path.name for path in other.best.iterdir()) == ["fake.py", "verdict.json"], "the next best is a file"


# -- begun without a GPU ---------------------------------------------------------------------------

KEPT = (
    source(speed=9.0, visit="correct 1.1"),
    source("wrong", note="stays"),
    source(speed=2.0, visit="correct 3.0", confirm="correct 2.9"),
    source(speed=1.0, visit="wrong"),
    source("untested", visit="correct 2.0"),
    source(speed=2.0, visit="correct 3.0", confirm="correct 2.9"),  # the same text as the third
)


async def estimated(path: Path, attempts: int = len(KEPT)) -> RunFolder:
    folder = make_run(path, init=source(speed=4.0, note="given", visit="correct 0.5"))
    await go(folder, drawn(*KEPT), Drafts(attempts))
    assert load_run(path).best == "a0001"
    return folder


async def test_an_estimated_run_with_a_gpu_is_judged_anew_before_it_goes_on(tmp_path: Path) -> None:
    folder, gpu = await estimated(tmp_path / "run"), ScriptedGpu(seconds=0.01)
    before = read_events(folder.journal)[0]
    asked: list[str] = []

    def on_event(event: Any) -> None:
        asked.append(event["t"])

    strategy = Drafts(len(KEPT))
    summary = await go(folder, drawn(*KEPT), strategy, gpu, on_event=on_event)
    after, record = read_events(folder.journal)[0], load_run(folder.path)
    assert after[: len(before)] == before, "the journal is append-only"
    assert (summary.measured, summary.anew, summary.device) == (True, 5, "NVIDIA Scripted")
    assert factors(record) == [0.5, 1.1, None, 2.9, None, 2.0, 2.9]
    assert [str(a.status) for a in record.attempts] == [
        "correct", "correct", "wrong", "correct", "wrong", "correct", "correct",
    ]  # fmt: skip
    assert (record.best, record.measured, record.pending) == ("a0003", True, 0)
    kinds = {t.verdict.score_kind for a in record.attempts for t in a.turns if t.verdict and t.verdict.score_kind}
    assert kinds == {"measured"}
    assert folder.best_file().read_text() == KEPT[2]
    keys = [e["key"] for e in after if e["t"] == "reserve" and e["key"].endswith("/anew")]
    assert keys == ["a0000/1/anew", "a0001/1/anew", "a0003/1/anew", "a0004/1/anew", "a0005/1/anew"]
    assert record.spent.gpu_seconds == pytest.approx(sum(sum(e["gpu"].values()) for e in after if e["t"] == "anew"))
    latest = {o.attempt: o.score for o in strategy.outcomes}
    assert latest == {a.id: a.score for a in record.attempts}, "the strategy saw the new scores"


async def test_the_old_part_replays_and_the_new_one_goes_on_from_measured_scores(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", seed=3)
    script: Scripted = lambda r: reply(source(speed=2.0, note=r.id, visit="correct 4.0"))  # noqa: E731
    stop = Stop()

    def on_event(event: Any) -> None:
        if event["t"] == "outcome" and event["attempt"] == "a0004":
            stop.request()

    await go(folder, script, Wander(7), on_event=on_event, stop=stop)
    for gpu in (ScriptedGpu(), ScriptedGpu()):
        summary = await go(folder, script, Wander(7), gpu)
        assert (summary.reason, summary.anew, summary.ended) == (Reason.STRATEGY, 4, 7)
    assert factors(load_run(folder.path)) == [4.0] * 7
    assert sum(gpu.calls.values()) == 0, "the second session had nothing to do"


async def test_a_run_cut_anywhere_while_judged_anew_ends_the_same(tmp_path: Path) -> None:
    folder, strategy = await estimated(tmp_path / "run"), Drafts(len(KEPT))
    await go(folder, drawn(*KEPT), strategy, ScriptedGpu())
    data, whole = folder.journal.read_bytes(), load_run(folder.path)
    lines = data.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"t":"measure"' in line)
    for cut in range(first, len(lines)):
        folder.journal.write_bytes(b"".join(lines[:cut]) + lines[cut][:7])
        kept = [a for a in load_run(folder.path).attempts if a.score is not None]
        assert cut == first or all(t.anew for a in kept for t in a.turns), "no estimate stands beside a measurement"
        await go(folder, drawn(*KEPT), Drafts(len(KEPT)), ScriptedGpu())
        record = load_run(folder.path)
        assert (factors(record), record.best, record.renewed) == (factors(whole), whole.best, whole.renewed)
        assert record.spent.gpu_seconds == pytest.approx(gpu_of_events(folder))


def gpu_of_events(folder: RunFolder) -> float:
    return sum(sum(e["gpu"].values()) for e in read_events(folder.journal)[0] if e["t"] in ("verdict", "anew"))


async def test_faults_while_judged_anew_are_noted_and_the_third_of_one_ends_the_session(tmp_path: Path) -> None:
    folder = await estimated(tmp_path / "run", 1)
    with pytest.raises(InfrastructureError, match="the visit worker broke"):
        await go(folder, drawn(*KEPT), Drafts(1), ScriptedGpu(faults={"visit": 3}))
    assert len(load_run(folder.path).faults) == 2
    summary = await go(folder, drawn(*KEPT), Drafts(1), ScriptedGpu(faults={"confirm": 1}))
    assert (summary.anew, summary.ended, summary.reason) == (2, 2, Reason.STRATEGY)
    assert load_run(folder.path).spent.gpu_seconds == pytest.approx(gpu_of_events(folder))


async def test_a_stop_while_judged_anew_leaves_the_rest_for_later(tmp_path: Path) -> None:
    folder, stop = await estimated(tmp_path / "run"), Stop()

    def on_event(event: Any) -> None:
        if event["t"] == "anew":
            stop.request()

    summary = await go(folder, drawn(*KEPT), Drafts(len(KEPT)), ScriptedGpu(), on_event=on_event, stop=stop)
    assert (summary.reason, summary.anew) == (Reason.INTERRUPTED, 1)
    assert (await go(folder, drawn(*KEPT), Drafts(len(KEPT)), ScriptedGpu())).anew == 5


async def test_without_room_in_the_budget_what_waits_is_untested(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", budget="calls=9,gpu_seconds=120.1")
    await go(folder, drawn(*KEPT), Drafts(3))
    summary = await go(folder, drawn(*KEPT), Drafts(3), ScriptedGpu(seconds=0.06))
    assert (summary.reason, summary.detail) == (Reason.BUDGET, "gpu_seconds")
    record = load_run(folder.path)
    assert (summary.anew, record.pending, record.best) == (1, 1, "a0001")
    assert [a.status for a in record.attempts] == [Status.CORRECT, Status.WRONG, Status.UNTESTED]


async def test_nothing_correct_on_the_gpu_leaves_no_best(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    script = drawn(source(speed=2.0, visit="wrong"))
    await go(folder, script, Drafts(1))
    assert folder.best_file().exists()
    summary = await go(folder, script, Drafts(1), ScriptedGpu())
    assert (summary.best, summary.best_file) == (None, None)
    assert not folder.best.exists()


async def test_an_attempt_that_passed_and_had_not_ended_is_repaired_where_the_gpu_objects(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    script = drawn(source(speed=2.0, visit="wrong"))
    await go(folder, script, Drafts(1))
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    judged = next(i for i, line in enumerate(lines) if b'"t":"verdict"' in line)
    folder.journal.write_bytes(b"".join(lines[: judged + 1]))
    await go(folder, script, Drafts(1), ScriptedGpu())
    (attempt,) = load_run(folder.path).attempts
    assert [str(t.verdict.status) for t in attempt.turns if t.verdict] == ["wrong", "wrong"]
