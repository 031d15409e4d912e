"""The judge: a process with its own context of the device that owns seeds, inputs, expected values and the result.

    python -m verifier.gpu.judge_process SOCKET DEVICE

It never loads a candidate's code: plans are data to it. Candidates run in the runner that the supervisor hands to it;
the two share slots and nothing else. One visit at a time; ends with its parent and with its socket.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import socket
import sys
import time
import traceback
from contextlib import suppress
from typing import Any, Literal

import torch

from verifier import racing, timing
from verifier.errors import ProblemError, first_line
from verifier.gpu.ceilings import ceilings
from verifier.gpu.check import DoesNotFit, Found, Loaded, WorkloadCheck
from verifier.gpu.device import Device, open_device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.live_file import FileWork
from verifier.gpu.live_visit import ContestLink, LiveSteps
from verifier.gpu.pairs import Pairs, TimedWrong
from verifier.gpu.parts import Parts
from verifier.gpu.protocol import FROM_RUNNER, FROM_SUPERVISOR, Channel, Gone, Message
from verifier.gpu.references import References, Stochastic
from verifier.gpu.runner import end_with_parent
from verifier.gpu.sharing import runs_on, signs
from verifier.gpu.visit import Fault, Request, Visit
from verifier.interpreter.gate import value_findings
from verifier.plan.reader import PlanError, read_plan
from verifier.problem import Workload
from verifier.reference import Reference
from verifier.timing import WorkloadTiming
from verifier.verdict import Ceilings, Diagnostic, FileRun, Record, Status, StepTimes, TestReport

_PATIENCE = 60.0
_LIVE_SHARE = 0.85
"""Of a visit for all commands of a contestant: it may build its code in it."""
_RACE_SECONDS = 60.0
"""Alternatives beyond that are the candidate's loss, and no visit that runs past its limit."""
_RACE_REPEATS = 2
_COLLECT_EVERY = 16
_PLANS = 8
"""Plans that a judge keeps as read: those of the last bases come again."""
_STEP_RUNS = 8
"""Calls that timing each step takes, with some to spare."""
Outcome = Literal["passed", "failed", "not_applicable"]


class Unsupported(Exception):
    """The device cannot run what the plan holds. One sentence."""


class Plans:
    """Reads plans, and remembers the last ones by all of their bytes. What a kernel's text says of it was read where
    the plan was made; here a kernel is something to load."""

    def __init__(self) -> None:
        self._read: dict[bytes, Loaded] = {}
        self.right_bases: set[tuple[str, str, str]] = set()
        """Problem, workload and digest of the plan of bases that were found right."""

    def read(self, text: bytes, blobs: dict[str, bytes]) -> Loaded:
        """Raises PlanError."""
        parts = [text, *(part for name in sorted(blobs) for part in (name.encode(), blobs[name]))]
        key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
        found = self._read.pop(key, None) or Loaded(read_plan(json.loads(text), blobs, kernels=False), text, blobs)
        self._read[key] = found
        while len(self._read) > _PLANS:
            del self._read[next(iter(self._read))]
        return found


class Judge:
    """One visit after another."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._references = References(device.torch_device)
        self._plans = Plans()
        self._link: Link | None = None
        self._contestant: ContestLink | None = None
        self._visits = 0
        self._ceilings: Ceilings | None = None

    def take_contestant(self, message: Message) -> None:
        """Takes over the line to a contestant, for the next visit."""
        self._drop_contestant()
        end, flags = message.fds
        channel = Channel(socket.socket(fileno=end), FROM_RUNNER)
        self._contestant = ContestLink(channel, flags, 10.0, self._device.synchronize)

    def take_runner(self, message: Message) -> None:
        """Takes over the runner's socket and page of flags."""
        self._drop_runner()
        end, flags = message.fds
        channel = Channel(socket.socket(fileno=end), FROM_RUNNER)
        self._link = Link(channel, flags, 10.0, self._device.synchronize)

    def expect_runner(self) -> None:
        """Raises RunnerFailed where it cannot take a visit; then it is not the candidate's fault."""
        try:
            if self._link is None:
                raise RunnerFailed("died", "there is no runner", lost=True)
            self._link.budget = math.inf
            self._link.part = Parts(self._device.synchronize)
            self._link.drop(trim=True)  # what others hold of the device is looked at next
        except RunnerFailed:
            self._drop_runner()
            raise

    def visit(self, request: Request, blobs: dict[str, bytes]) -> Visit | FileRun:
        """Raises ProblemError where the problem's file is at fault."""
        work = self._work(request, blobs)
        try:
            if isinstance(work, _LiveVisit) and request.path == "file":
                return work.run_file()
            answer = work.run()
            return answer.model_copy(update={"ceilings": self._peaks()}) if answer.steps else answer
        finally:
            if work.runner_lost:
                self._drop_runner()
            self._drop_contestant()
            if work.full:
                self._references.clear()
                self._device.trim()
            self._visits += 1
            if work.lost or self._visits % _COLLECT_EVERY == 0:
                gc.collect()
            self._device.tidy()

    def _work(self, request: Request, blobs: dict[str, bytes]) -> _Visit:
        if self._link is None or (request.path != "plan" and self._contestant is None):
            raise RuntimeError("a visit without a process for the candidate")
        if request.path != "plan":
            self._references.clear()  # nobody knows what the candidate's process will need
            self._device.trim()
        if self._contestant is None or request.path == "plan":
            return _Visit(self._device, self._references, self._plans, self._link, request, blobs)
        work = _LiveVisit(self._device, self._references, self._plans, self._contestant, request, blobs)
        work.runner, self._contestant.build_seconds = self._link, request.build_seconds
        self._contestant.budget = _LIVE_SHARE * request.limit_seconds
        self._link.deadline, self._link.budget = request.command_seconds, request.limit_seconds / 2
        return work

    def _peaks(self) -> Ceilings | None:
        """Measured once; None where this device has none, or no room for it."""
        if self._ceilings is None and self._device.torch_device.type == "cuda":
            with suppress(RuntimeError):  # out of memory, or a product that this build cannot do
                self._ceilings = ceilings(self._device.torch_device)
        return self._ceilings

    def _drop_contestant(self) -> None:
        if self._contestant is not None:
            self._contestant.close()
        self._contestant = None

    def _drop_runner(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None


class _Visit:
    """What happens to one request."""

    path: Literal["plan", "live"] = "plan"
    beside_bytes = 0
    """Memory of the GPU that processes of ours beside the runner may hold."""

    def __init__(
        self, device: Device, references: References, plans: Plans, link: Link, request: Request,
        blobs: dict[str, bytes],
    ) -> None:  # fmt: skip
        self._device, self._references, self._link, self._request = device, references, link, request
        self._plans = plans
        self._blobs, self._found = blobs, Found()
        self._timings: list[WorkloadTiming] = []
        self._steps: list[StepTimes] = []
        self._excuse = ""
        self._now = tuple(n for n in request.workloads if n not in request.later)
        """Workloads that are checked."""
        self.lost = False
        self.full = False
        """Whether memory was lacking somewhere."""
        link.deadline, link.budget = request.command_seconds, request.limit_seconds / 2
        self._part = references.part = link.part

    @property
    def runner_lost(self) -> bool:
        return self.lost

    def run(self) -> Visit:
        start = time.perf_counter()
        checked = start
        try:
            self._found.findings += signs(self._device.other_bytes() - self.beside_bytes, (), None)
            with self._part("plan"):
                candidate = self._candidate()
            self._check(candidate, self._now)
            checked = time.perf_counter()
            if not self._found.wrong() and self._found.checks:
                for name in self._request.timed:
                    self._try_time(candidate, self._workload(name))
            if not self._found.wrong() and not self._timings:
                self._check_later(candidate)
        except PlanError as wrong:
            self._found.fail(Status.REJECTED, "plan-refused", f"the plan is malformed: {wrong}")
        except RunnerFailed as failed:
            self.lost = failed.lost
            self.full |= failed.kind == "out-of-memory"
            if failed.kind == "unsupported":
                self._excuse = str(failed)
            else:
                self._found.fail(failed.status, failed.kind, str(failed), failed.line)
            if not failed.lost:
                self._clear()
        except TimedWrong as wrong:
            self._found.fail(Status.WRONG, "wrong-when-timed", str(wrong))
            self._clear()
        except (DoesNotFit, Stochastic, Unsupported) as excuse:
            self._excuse = str(excuse)
            self._clear()
        except torch.OutOfMemoryError:
            self._excuse = "the reference and the slots do not fit on the device together"
            self.full = True
            self._clear()
        end = time.perf_counter()
        checked = checked if checked > start else end
        return self._answer({"check": checked - start, "time": end - checked})

    def _candidate(self) -> Loaded:
        candidate = self._loaded("plan")
        self._refuse_target(candidate)
        return candidate

    def _loaded(self, name: str) -> Loaded:
        """A plan of the request, read strictly."""
        prefix = f"{name}/"
        blobs = {k.removeprefix(prefix): v for k, v in self._blobs.items() if k.startswith(prefix)}
        return self._plans.read(self._blobs[name], blobs)

    def _refuse_target(self, candidate: Loaded) -> None:
        target, own = candidate.plan.target, self._device.architecture
        if own and not runs_on(target, own):
            raise Unsupported(f"the kernels are compiled for {target} and this GPU is {own}: choose its --target")

    def _workload(self, name: str) -> Workload:
        return next(w for w in self._request.problem.workloads if w.name == name)

    def _reference(self, name: str) -> Reference:
        with self._part("reference"):
            return self._references.get(self._request.problem, self._workload(name), self._request.seed)

    def _check(self, candidate: Loaded, workloads: tuple[str, ...], choice: dict[int, int] | None = None) -> None:
        request = self._request
        for i, name in enumerate(workloads):
            salt = "" if name in request.timed else request.salt  # timed calls have inputs of their own
            check = WorkloadCheck(
                self._device, self._link, self._references, candidate, self._reference(name), salt, choice
            )
            first = i == 0
            check.run(
                request.draws, request.repeats, request.probe and first, self._found, request.held if first else None
            )
            if self._found.wrong():
                return

    def _check_later(self, candidate: Loaded) -> None:
        """What a confirmation would check, where none follows; not where its time is up."""
        if self._link.budget > 0:
            self._now = self._request.workloads
            self._check(candidate, self._request.later)

    def _try_time(self, candidate: Loaded, workload: Workload) -> None:
        """Times a workload, or says in a warning why that was not possible."""
        if self._found.wrong():
            return
        try:
            with self._part("plan"):
                base = self._loaded("base")
            with self._part("check base"):
                self._check_base(base, workload.name)
            self._time(candidate, base, workload)
        except (DoesNotFit, PlanError, torch.OutOfMemoryError) as excuse:
            message = f"{workload.name} was not timed: {first_line(excuse)}"
            self._found.findings.append(Diagnostic(severity="warning", code="not-timed", message=message))
            self.full |= isinstance(excuse, torch.OutOfMemoryError)
            self._references.clear()
            self._clear()
            self._check_anew(candidate, workload.name)

    def _check_anew(self, candidate: Loaded, workload: str) -> None:
        """On inputs that no visit had before, as timed calls are; not where its time is up."""
        if self._link.budget <= 0:
            return
        with suppress(DoesNotFit, torch.OutOfMemoryError):
            WorkloadCheck(
                self._device, self._link, self._references, candidate, self._reference(workload), self._request.salt
            ).run(("task",), 1, False, self._found)

    def _check_base(self, base: Loaded, workload: str) -> None:
        """Once for a base that is not the reference itself. Raises DoesNotFit where its outputs are wrong."""
        request = self._request
        key = (request.problem.id, workload, hashlib.sha256(base.text).hexdigest())
        if request.base == "eager" or key in self._plans.right_bases:
            return
        found = Found()
        reference = self._reference(workload)
        try:
            WorkloadCheck(self._device, self._link, self._references, base, reference).run(("task",), 1, False, found)
        except RunnerFailed as failed:
            if failed.lost:
                raise
            raise DoesNotFit(f"its base {request.base} does not run: {failed}") from None
        wrong = [f.message for f in (*value_findings(tuple(found.checks)), *found.findings) if f.severity == "error"]
        if wrong or not found.checks:
            raise DoesNotFit(f"its base {request.base} is wrong: {wrong[0] if wrong else 'it cannot be checked'}")
        self._plans.right_bases.add(key)

    def _time(self, candidate: Loaded, base: Loaded, workload: Workload) -> None:
        request = self._request
        pairs = Pairs(self._device, self._link, self._reference(workload.name), candidate, base, request.salt)
        self._references.make_room(self._device, pairs.needed_bytes())
        try:
            if alternatives := pairs.alternatives():
                found = racing.race(
                    alternatives, pairs.seconds_of, repeats=_RACE_REPEATS, max_seconds=_RACE_SECONDS
                )  # fmt: skip
                pairs.choice = found.choice
                if any(pairs.choice.values()):
                    pairs.close()
                    self._check(candidate, (workload.name,), pairs.choice)
                    if self._found.wrong():
                        return
            floor = request.floor_seconds.get(workload.name, 0.0)
            decided = timing.decide(pairs.measure, request.rules, floor_seconds=floor)
            confirmed = None
            if request.confirmation is not None:
                confirmed = timing.confirm(pairs.measure, decided, request.confirmation, floor_seconds=floor)
            with self._part("bound and steps"):
                bound = pairs.host_bound()
                self._time_steps(pairs, bound)
        except RunnerFailed as failed:
            if failed.kind == "hang" and not failed.lost:
                raise DoesNotFit(f"it is too slow, {failed}") from None
            if failed.lost or (pairs.side != "b" and failed.kind != "out-of-memory"):
                raise
            # The candidate ran alone before: what does not fit is both side by side.
            self.full |= failed.kind == "out-of-memory"
            what = "the base" if pairs.side == "b" else "the candidate beside its base"
            raise DoesNotFit(f"{what} cannot be timed: {failed}") from None
        finally:
            self._found.findings += signs(0, pairs.clocks, self._device.highest_hz)
            self._finish(pairs)
        self._timings.append(
            WorkloadTiming(workload=workload.name, base=request.base, decided=decided, confirmed=confirmed,
                           graphs=pairs.graphs, choice=pairs.choice, host_bound_seconds=bound)
        )  # fmt: skip

    def _time_steps(self, pairs: Pairs, call_seconds: float) -> None:
        """Only where there is time for it, so that it cannot run past the deadline of a command by itself."""
        if not self._request.steps or _STEP_RUNS * call_seconds > self._link.deadline / 2:
            return
        try:
            found = pairs.steps()
        except RunnerFailed as failed:
            if failed.lost:
                raise
            return
        self._steps += [found] if found is not None else []

    def _finish(self, pairs: Pairs) -> None:
        try:
            pairs.close()
        except RunnerFailed:
            self.lost = True

    def _clear(self) -> None:
        """After a failure that left the runner alive: it forgets what it holds, or is replaced."""
        try:
            self._link.drop()
        except RunnerFailed:
            self.lost = True

    def _answer(self, seconds: dict[str, float]) -> Visit:
        found = self._found
        findings = [*value_findings(tuple(found.checks)), *found.findings]
        errors = [f for f in findings if f.severity == "error"]
        status = found.status or (Status.WRONG if errors else None)
        outcome: Outcome = "failed" if errors else "passed"
        reason = errors[0].message if errors else self._excuse
        checks = tuple(found.checks)
        if not errors and (self._excuse or not checks):
            outcome, checks = "not_applicable", ()
            reason = reason or "the reference takes no distribution"
        report = TestReport(
            outcome=outcome, basis="gpu", path=self.path, reason=reason, workloads=self._now,
            checks=checks, skipped_draws=found.skipped, findings=tuple(findings), precision=found.precision,
            seconds=seconds["check"],
        )  # fmt: skip
        return Visit(
            status=status, reason=reason, test=report, timings=tuple(self._timings), steps=tuple(self._steps),
            runner_lost=self.runner_lost, full=self.full and all(f.code == "out-of-memory" for f in errors),
            seconds=seconds, parts=dict(self._part.seconds),
        )  # fmt: skip


class _LiveVisit(LiveSteps, _Visit):
    """A request whose candidate runs in a contestant."""

    path = "live"
    beside_bytes = 2 << 30

    @property
    def runner_lost(self) -> bool:
        return self.base_lost

    def run_file(self) -> FileRun:
        """Raises ProblemError."""
        work = FileWork(self._device, self._references, self._link, self.runner, self._request)
        return work.run(self._loaded("plan"), self._blobs["source"])


def serve(channel: Channel, judge: Judge) -> None:
    """Answers the supervisor until it is gone. Ends after a fault of our own."""
    channel.send({"hello": os.getpid()}, seconds=_PATIENCE)
    while True:
        try:
            message = channel.receive()
        except Gone:
            return
        if message.header["do"] == "runner":
            judge.take_runner(message)
            continue
        if message.header["do"] == "contestant":
            judge.take_contestant(message)
            continue
        fault: Fault | None = None
        answer: Record | None = None
        try:
            judge.expect_runner()
            answer = judge.visit(Request.model_validate(message.header["request"]), message.blobs)
        except RunnerFailed as failed:
            fault = Fault(kind="runner", message=str(failed))
        except ProblemError as error:
            fault = Fault(kind="problem", message=_without_place(error), line=error.line)
        except Exception:  # noqa: BLE001 - the process boundary: the supervisor raises it and starts another judge
            fault = Fault(kind="ours", message=traceback.format_exc()[-4000:])
        done: Record | None = fault or answer
        assert done is not None
        kind = "fault" if fault is not None else "file" if isinstance(answer, FileRun) else "visit"
        header: dict[str, Any] = {kind: done.model_dump(mode="json")}
        channel.send(header, seconds=_PATIENCE)
        if fault is not None and fault.kind == "ours":
            return


def _without_place(error: ProblemError) -> str:
    return str(error).removeprefix(f"{error.file}:{error.line}: ").removeprefix(f"{error.file}: ")


def main() -> None:
    end, factory = int(sys.argv[1]), sys.argv[2]
    end_with_parent()
    torch.set_grad_enabled(False)
    channel = Channel(socket.socket(fileno=end), FROM_SUPERVISOR)
    judge = Judge(open_device(factory))
    gc.freeze()  # what is loaded stays; so a collection after each visit is quick
    serve(channel, judge)
    os._exit(0)


if __name__ == "__main__":
    main()
