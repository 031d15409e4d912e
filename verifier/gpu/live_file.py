"""A candidate's file beside its plan: the same fresh inputs to both, outputs bit by bit, then times in alternation.

Short programs run many times in one window of the judge's clock. A file that lies about its time there gains nothing:
the speed-up is the plan's, which was timed without it.
"""

from __future__ import annotations

import time
from statistics import fmean, median
from typing import Literal

import torch

from verifier.errors import first_line
from verifier.gpu.check import DoesNotFit, Loaded, in_full
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.live import Contender, HostPairs
from verifier.gpu.live_visit import ContestLink, live_candidate
from verifier.gpu.pairs import TimedWrong
from verifier.gpu.references import References, Stochastic
from verifier.gpu.visit import Request
from verifier.near import same_bytes
from verifier.plan.reader import PlanError
from verifier.reference import Reference
from verifier.sequence import block_location, sequence_half_width
from verifier.timing import RULES
from verifier.verdict import FileRun, FileTiming

DRAWS = ("task", "normal", "sparse")
"""Distributions on which outputs are compared."""
BLOCKS = 10
WINDOW_SECONDS = 5e-3
"""Of calls of a program back to back: 2% of it are more than what the host's clock cannot tell."""
MOST_CALLS = 500
"""In a window: fewer than the launches that a GPU lets wait."""
Outputs = Literal["bitwise", "yardstick", "different", "failed"]


class FileWork:
    """What happens to one request. `link` is the contestant's, `runner` replays the plan."""

    def __init__(self, device: Device, references: References, link: Link, runner: Link, request: Request) -> None:
        assert isinstance(link, ContestLink)
        self._device, self._references, self._link, self._runner = device, references, link, runner
        self._request = request
        self._outputs: Outputs = "bitwise"
        self._timings: list[FileTiming] = []

    def run(self, plan: Loaded, source: bytes) -> FileRun:
        """Raises ProblemError, and RunnerFailed where the plan's runner is at fault."""
        start, reason = time.perf_counter(), ""
        try:
            wanted = [self._reference(name) for name in self._request.workloads]
            file = live_candidate(self._references, wanted, self._link, self._request.salt, source)
            for reference in wanted:
                self._workload(reference, file, plan)
        except RunnerFailed as failed:
            self._outputs, reason = "failed", str(failed)
        except TimedWrong as wrong:
            self._outputs, reason = "different", str(wrong)
        except (DoesNotFit, Stochastic, PlanError, torch.OutOfMemoryError) as excuse:
            self._outputs, reason = "failed", f"it could not be run beside its plan: {first_line(excuse)}"
        spent = time.perf_counter() - start
        return FileRun(outputs=self._outputs, reason=reason, timings=tuple(self._timings), seconds=spent)

    def _reference(self, name: str) -> Reference:
        problem = self._request.problem
        workload = next(w for w in problem.workloads if w.name == name)
        return self._references.get(problem, workload, self._request.seed)

    def _workload(self, reference: Reference, file: Loaded, plan: Loaded) -> None:
        name = reference.workload.name
        one = Contender("a", self._link, file)
        other = Contender("b", self._runner, plan, choice=self._request.choices.get(name, {}))
        pairs = HostPairs(self._device, reference, other, self._request.salt)
        try:
            pairs.open(one, alike=True)
            for draw in DRAWS:
                self._compare(reference, one, other, draw)
            if name in self._request.timed:
                self._time(name, pairs, repeated=not plan.program(name).restore)
        finally:
            pairs.close()

    def _compare(self, reference: Reference, file: Contender, plan: Contender, draw: str) -> None:
        """Raises TimedWrong where the file's outputs are not right; notes where they are not those of the plan."""
        made = self._references.draw(reference, draw, self._request.salt)
        if isinstance(made, str):
            return
        found = []
        for contender in (file, plan):
            assert contender.slots is not None
            contender.slots.write(made.inputs, reference.state)
            contender.slots.poison()
            contender.link.run(contender.side)
            found.append([view.clone() for view in contender.slots.outputs.views])
        if all(same_bytes(a, b) for a, b in zip(*found, strict=True)):
            return
        self._outputs = "yardstick"
        assert file.slots is not None
        for check in in_full(file.slots.program, found[0], made, reference, draw):
            if not check["passed"] and not made.coarse():
                raise TimedWrong(f"inputs {draw}, output {check['output']} of the file: {check['reason']}")

    def _time(self, name: str, pairs: HostPairs, *, repeated: bool) -> None:
        """`repeated`: forward may run again on what the run before it left."""
        if repeated:
            first = [pair for i in (-2, -1) for pair in pairs.measure(i).pairs]
            longer = max(map(min, zip(*first, strict=True)))
            pairs.repeats = min(max(1, round(WINDOW_SECONDS / longer)), MOST_CALLS)
        blocks = [pairs.measure(i).pairs for i in range(BLOCKS)]
        ratios = [block_location(block) for block in blocks]
        self._timings.append(
            FileTiming(
                workload=name,
                file_seconds=median(median(a for a, _ in block) for block in blocks),
                plan_seconds=median(median(b for _, b in block) for block in blocks),
                log_ratio=fmean(ratios),
                half_width=sequence_half_width(ratios, RULES.alpha, RULES.scale),
                calls=pairs.repeats,
                graphs=all(pairs.graphs),
            )
        )
