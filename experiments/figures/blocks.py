"""Child: locations of timed blocks, with memory that changes hands after each and with memory that stays.

It is a judge of its own, in its own process, with a runner; the blocks are `verifier.gpu.pairs`'.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from verifier.errors import InfrastructureError
from verifier.gpu.check import Loaded
from verifier.gpu.cuda import CudaError
from verifier.gpu.device import Device, open_device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.pairs import Pairs, TimedWrong
from verifier.gpu.protocol import FROM_RUNNER, Channel
from verifier.gpu.supervisor import GpuWorker, Plans, _Nursery, hear_hello
from verifier.gpu.visit import Request
from verifier.plan.reader import read_plan
from verifier.reference import Reference
from verifier.sequence import block_location

_PATIENCE = 60.0
"""Seconds for the start of the processes, and for the job that is running at the end."""


@dataclass(frozen=True, slots=True)
class Job:
    """`count` blocks of the first workload of a request."""

    request: Request
    plans: Plans
    count: int
    anew: bool
    """Memory changes hands, or is allocated anew, after each block."""


def block_locations(device: str, paths: Sequence[Path], jobs: Sequence[Job], seconds: float) -> list[list[float]]:
    """log(base / candidate) of each block of each job, fewer jobs where the time runs out.

    Raises InfrastructureError.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(run_jobs, device, tuple(paths), tuple(jobs), seconds)
        try:
            return future.result(timeout=seconds + _PATIENCE)
        except (TimeoutError, BrokenProcessPool) as error:
            for process in list((pool._processes or {}).values()):
                process.kill()
            raise InfrastructureError(f"no blocks within {seconds:.0f} s: {type(error).__name__}") from None


class _Staying(Pairs):
    """All blocks in the memory of the first."""

    def _renew(self, salt: str) -> None:
        if not self._open:
            super()._renew(salt)


class _Lender(GpuWorker):
    """A runner without a judge: this process is the judge."""

    def link(self, deadline: float, settle: Callable[[], None]) -> Link:
        self._nursery = _Nursery(self._device, self._environ)
        self._runner = runner = self._nursery.spawn()
        hear_hello(Channel(runner.socket, FROM_RUNNER), "runner", runner.log)
        line = socket.socket(fileno=os.dup(runner.socket.fileno()))
        return Link(Channel(line, FROM_RUNNER), os.dup(runner.flags), deadline, settle)


def run_jobs(factory: str, paths: tuple[Path, ...], jobs: tuple[Job, ...], seconds: float) -> list[list[float]]:
    """The child's part. Turns gradients off. Raises InfrastructureError."""
    torch.set_grad_enabled(False)
    found: list[list[float]] = []
    device = open_device(factory)
    with (
        closing(_Lender(factory, paths=paths)) as lender,
        closing(lender.link(jobs[0].request.command_seconds, device.synchronize)) as link,
    ):
        end = time.monotonic() + seconds
        try:
            for job in jobs:
                if time.monotonic() > end:
                    break
                found.append(_locations(device, link, job))
        except (RunnerFailed, TimedWrong, CudaError, torch.OutOfMemoryError) as error:
            raise InfrastructureError(f"blocks could not be timed: {error}") from None
    return found


def _locations(device: Device, link: Link, job: Job) -> list[float]:
    request, plans = job.request, job.plans
    workload = next(w for w in request.problem.workloads if w.name == request.workloads[0])
    reference = Reference.create(request.problem, workload, request.seed, device.torch_device)
    loaded = Loaded(read_plan(plans.plan, dict(plans.blobs)), json.dumps(plans.plan).encode(), plans.blobs)
    pairs = (Pairs if job.anew else _Staying)(device, link, reference, loaded, loaded, request.salt)
    try:
        return [block_location(pairs.measure(i).pairs) for i in range(job.count)]
    finally:
        pairs.close()
