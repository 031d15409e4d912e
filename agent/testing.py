"""Deterministic stand-ins for a model, a bench and a strategy, to run the whole loop without a server or a
compiler.

The bench reads its verdict from a comment of the source, `# verdict: STATUS SPEED_UP`, so a scripted model
decides what happens; so does the GPU for each of its calls: `# visit:`, `# confirm:` and `# examine:`, and for the
file's own run: `# file: different`.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from agent.budget import Budget
from agent.prompting import Prompts
from agent.run_folder import Manifest, RunFolder, TargetFacts
from strategies.base import Operator, Outcome, Proposal, SearchView
from tools.metering import Usage
from tools.models.base import Completion, ModelProfile, ModelRequest, Prices, Sampling
from verifier.bench import CompileStage, TestStage
from verifier.candidate import Candidate
from verifier.errors import InfrastructureError
from verifier.gpu.replay_folder import Replay, pack_folder
from verifier.problem import Problem, Role, Workload
from verifier.timing import RULES, Timing, WorkloadTiming, classify
from verifier.verdict import (
    CompileReport,
    Diagnostic,
    Estimate,
    FileRun,
    FileTiming,
    OutputCheck,
    ProfileReport,
    Stage,
    Status,
    TestReport,
    Verdict,
)

_LINE = r"^# {}: (\w+) ?(\S*)"
_COMPILED_AWAY = frozenset({Status.COMPILE_ERROR, Status.REJECTED, Status.OVER_LIMITS, Status.UNPARSABLE})

USAGE = Usage(uncached=100, output=50)
PROFILE = ModelProfile(name="scripted", prices=Prices(uncached=1, output=2), max_tokens=1000)
PROBLEM = Problem(
    name="attention/fake",
    source="import torch\n\nN = 8\nWORKLOADS = {'hidden': 4096}\n\nclass Model(torch.nn.Module):\n    pass\n",
    file="fake.py",
    workloads=(
        Workload(name="small", roles=frozenset({Role.SMALL, Role.TIMED}), constants={"N": 8}),
        Workload(name="secret", roles=frozenset({Role.HELD_OUT}), constants={"N": 4096}),
    ),
)


def source(status: str = "correct", speed: float = 1.0, note: str = "", **gpu: str) -> str:
    """A candidate whose verdict is known. `gpu`: what a GPU's calls find, for example `visit="correct 2.0"`."""
    lines = [f"# verdict: {status} {speed}", *(f"# {call}: {found}" for call, found in gpu.items()), f"# {note}"]
    return "\n".join(lines) + "\nclass ModelNew:\n    pass\n"


def reply(text: str) -> str:
    """A completion around a source."""
    return f"Here it is.\n```python\n{text}```\n"


def by_seed(request: ModelRequest) -> str:
    """The default script: a verdict drawn by the request's seed; a repair is often correct."""
    rng = random.Random(request.sampling.seed)
    status = rng.choices(["correct", "wrong", "compile_error", "unparsable"], [6, 2, 1, 1])[0]
    if status == "unparsable":
        return "I would rather explain."
    return reply(source(status, round(rng.uniform(0.5, 3.0), 3), request.id))


class ScriptedModel:
    """Answers by a script. `log` gets a line for each request that arrives."""

    def __init__(
        self,
        script: Callable[[ModelRequest], str] = by_seed,
        *,
        delay: Callable[[ModelRequest], float] = lambda request: 0.0,
        usage: Usage = USAGE,
        log: Path | None = None,
        profile: ModelProfile = PROFILE,
    ) -> None:
        self.profile = profile
        self.asked: Counter[str] = Counter()
        self._script, self._delay, self._usage, self._log = script, delay, usage, log

    async def complete(self, request: ModelRequest) -> Completion:
        self.asked[request.id] += 1
        self._note(f"asked {request.id}")
        await asyncio.sleep(self._delay(request))
        text = self._script(request)
        return Completion(request=request.id, text=text, usage=self._usage, model=self.profile.name)

    def _note(self, line: str) -> None:
        if self._log is not None:
            handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(handle, f"{line}\n".encode())
            os.close(handle)


class ScriptedBench:
    """Judges by the source's comment. Each call takes `seconds`. `faults` names how many calls of each stage take ten
    times as long and raise InfrastructureError first.
    """

    def __init__(self, *, seconds: float = 0.0, faults: dict[str, int] | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self._seconds, self._faults, self._lock = seconds, dict(faults or {}), threading.Lock()

    def compile(self, candidate: Candidate) -> CompileStage:
        self.enter("compile")
        status, _ = _read(candidate.source)
        decided = status if status in _COMPILED_AWAY else None
        report = CompileReport(target="sm_90a", triton="0", seconds=0.0)
        return CompileStage(
            report=report, status=decided, reason="as scripted" if decided else "", handle=candidate.source
        )

    def test(self, stage: CompileStage) -> TestStage:
        self.enter("test")
        status, _ = _read(stage.handle)
        return TestStage(report=_report("interpreter", status), status=None if status is Status.CORRECT else status)

    def profile(self, stage: CompileStage, test: TestStage) -> ProfileReport:
        self.enter("profile")
        _, speed = _read(stage.handle)
        estimate = Estimate(workload="small", seconds=1e-3 / speed, base_seconds=1e-3)
        return ProfileReport(estimates=(estimate,), timings=test.timings, diagnosis=test.examined)

    def pack(self, stage: CompileStage, test: TestStage) -> bytes:
        self.enter("pack")
        replay = Replay(problem=PROBLEM, workload="small", seed=0)
        return pack_folder({"of": stage.handle}, {"k.cubin": b"binary"}, replay)

    def verdict(
        self,
        candidate: Candidate,
        compile: CompileStage,
        test: TestStage | None,
        profile: ProfileReport | None,
    ) -> Verdict:
        self.enter("verdict")
        status, speed = _read(candidate.source)
        stage, basis, score = Stage.COMPILE if test is None else Stage.INTERPRET, "none", math.log(speed)
        if test is not None:
            status, basis = test.status or Status.CORRECT, test.report.basis
        if test is not None and basis == "gpu":
            stage = Stage.CONFIRMATION if test.confirmation else Stage.TIMING
            score = sum((t.confirmed or t.decided).log_ratio or 0.0 for t in test.timings)
        kind = "measured" if basis == "gpu" else "estimate"
        made = {
            "candidate": candidate.id,
            "problem": PROBLEM.id,
            "status": status,
            "stage": stage,
            "reason": (test.reason if test else "") or "as scripted",
            "basis": basis,
            "path": test.report.path if test else "plan",
            "compile": compile.report,
            "test": test.report if test else None,
            "profile": profile,
            "file": test.file if test else None,
        }
        return Verdict.model_validate(made | ({"score": score, "score_kind": kind} if status == "correct" else {}))

    def enter(self, stage: str) -> None:
        with self._lock:
            self.calls[stage] += 1
            fails = self._faults.get(stage, 0) > 0
            self._faults[stage] = self._faults.get(stage, 0) - 1
        time.sleep(self._seconds * (10 if fails else 1))
        if fails:
            raise InfrastructureError(f"the {stage} worker broke")


class ScriptedGpu:
    """A `Device` that finds what the source's comments say: a call without one what the call before it found.
    `seconds` is what each call takes, `faults` as of the bench; with `live` every file runs itself.
    """

    def __init__(self, *, seconds: float = 0.0, faults: dict[str, int] | None = None, live: bool = False) -> None:
        self._bench = ScriptedBench(seconds=seconds, faults=faults)
        self._path: Literal["plan", "live"] = "live" if live else "plan"
        self.calls = self._bench.calls

    def prepare(self) -> str:
        return "NVIDIA Scripted"

    def visit(self, stage: CompileStage, test: TestStage) -> TestStage:
        return self._found("visit", stage, ("visit", "verdict"))

    def confirm(self, stage: CompileStage, test: TestStage) -> TestStage:
        return self._found("confirm", stage, ("confirm", "visit", "verdict"))

    def compare_file(self, stage: CompileStage, test: TestStage) -> TestStage:
        self._bench.enter("compare_file")
        said = re.search(_LINE.format("file"), stage.handle, re.MULTILINE)
        timing = FileTiming(
            workload="small", file_seconds=1e-3, plan_seconds=1e-3, log_ratio=0.0, half_width=0.001, graphs=True
        )
        ran = {"outputs": said[1] if said else "bitwise", "reason": "as scripted" * bool(said), "seconds": 0.0}
        return test.model_copy(update={"file": FileRun.model_validate(ran | {"timings": (timing,)})})

    def examine(self, stage: CompileStage, test: TestStage) -> TestStage:
        self._bench.enter("examine")
        said = Diagnostic(severity="advice", code="counted", message="as the counters say")
        status, _ = _read(stage.handle, "examine", "verdict")
        update: dict[str, Any] = {"examined": (said,)}
        if status is not Status.CORRECT:
            update |= {"status": status, "reason": "as examined"}
        return test.model_copy(update=update)

    def _found(self, call: str, stage: CompileStage, lines: tuple[str, ...]) -> TestStage:
        self._bench.enter(call)
        status, speed = _read(stage.handle, *lines)
        second, passed = call == "confirm", status is Status.CORRECT
        decided = _timing("decision", math.log(speed))
        confirmed = _timing("confirmation", math.log(speed)) if second else None
        timing = WorkloadTiming(
            workload="small", path=self._path, decided=decided, confirmed=confirmed, graphs=(True, True)
        )
        return TestStage(
            report=_report("gpu", status).model_copy(update={"path": self._path}),
            status=None if passed else status,
            reason="" if passed else f"as the {call} found",
            timings=(timing,) if passed else (),
            confirmation=second,
        )


def _timing(kind: str, ratio: float) -> Timing:
    lower, upper = ratio - 0.001, ratio + 0.001
    return Timing.model_validate({
        "kind": kind, "decision": classify(lower, upper, RULES.margin), "candidate_seconds": 1e-3 / math.exp(ratio),
        "base_seconds": 1e-3, "log_ratio": ratio, "lower": lower, "upper": upper, "confidence": 0.96,
        "margin": RULES.margin, "blocks": 6, "pairs": 24, "thrown": {}, "first_block": 0, "next_block": 6,
        "seconds": 0.1,
    })  # fmt: skip


def _report(basis: str, status: Status) -> TestReport:
    passed = status is Status.CORRECT
    check = OutputCheck(
        workload="small",
        draw="normal",
        output=0,
        error=0.0,
        row_error=0.0,
        yardstick=1e-3,
        limit=4e-3,
        passed=passed,
    )
    outcome = "not_applicable" if status is Status.UNTESTED else "passed" if passed else "failed"
    return TestReport.model_validate({"outcome": outcome, "basis": basis, "checks": (check,), "seconds": 0.0})


def _read(text: str, *lines: str) -> tuple[Status, float]:
    """The first of these comments that the source has."""
    for name in lines or ("verdict",):
        if found := re.search(_LINE.format(name), text, re.MULTILINE):
            return Status(found[1]), float(found[2] or 1.0)
    raise ValueError("a scripted source says its verdict")


class Wander:
    """A strategy that uses all it is given: chance, the archive, parents. Ends after `attempts`; strict about
    its contract.
    """

    def __init__(self, attempts: int = 6) -> None:
        self.attempts = attempts
        self.proposed = 0
        self.seen: dict[str, Outcome] = {}

    def propose(self, view: SearchView, n: int) -> list[Proposal]:
        made = [self._one(view) for _ in range(min(n, self.attempts - self.proposed))]
        self.proposed += len(made)
        return made

    def observe(self, outcome: Outcome) -> None:
        self.seen.setdefault(outcome.attempt, outcome)

    def done(self, view: SearchView) -> str | None:
        return "all attempts made" if self.proposed >= self.attempts else None

    def _one(self, view: SearchView) -> Proposal:
        names = [o.attempt for o in view.archive if o.attempt in self.seen]
        scored = [o.attempt for o in view.archive if o.score is not None]
        draw = view.rng.random()
        if len(scored) >= 2 and draw < 0.3:
            return Proposal(Operator.CROSSOVER, parents=tuple(view.rng.sample(scored, 2)))
        if scored and draw < 0.6:
            return Proposal(Operator.REFINE, parents=(view.rng.choice(scored),), context=tuple(names[-1:]))
        if names and draw < 0.8:
            return Proposal(
                Operator.DIVERSIFY,
                parents=(view.rng.choice(names),),
                sampling={"temperature": round(draw, 3)},
            )
        return Proposal(Operator.DRAFT)


def make_run(
    path: Path,
    *,
    budget: str = "calls=1000",
    seed: int = 0,
    width: int = 1,
    max_repairs: int = 1,
    init: str | None = None,
    profile: ModelProfile | None = None,
    measured: bool = False,
    examine: bool = True,
) -> RunFolder:
    """A run folder on the fake problem."""
    manifest = Manifest(
        run=path.name,
        problem=PROBLEM,
        problem_id=PROBLEM.id,
        model=profile or PROFILE,
        strategy="wander",
        budget=Budget.parse(budget),
        seed=seed,
        width=width,
        max_repairs=max_repairs,
        sampling=Sampling(max_tokens=1000),
        target=TargetFacts(name="sm_90a", facts={"shared memory per block": "232448 bytes"}),
        measured=measured,
        examine=examine,
        versions={"triton": "3.9.0"},
        prompts=Prompts().digest,
    )
    return RunFolder.create(path, manifest, init=init)
