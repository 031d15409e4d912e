"""One session on a run folder: the sandbox, the judge, the fleet and the search, with a live view around them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from agent.journal import read_events
from agent.run_folder import RunFolder
from agent.search import Reason, Summary, search
from agent.session import Deps, no_gpu
from agent.stop import Stop
from experiments.live import Live, announce, say, say_next, warn
from experiments.report import write_report
from strategies import make_strategy
from tools.fleet.base import Fleet, Worker
from tools.fleet.local import LocalFleet
from tools.models import restore_model
from verifier.errors import ProblemError
from verifier.gpu.bench import GpuBench
from verifier.gpu.found import Fit, choose_target, chosen_gpus
from verifier.gpu.nvml import describe
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge, open_zygotes

WAITING = 4
"""Exit code of a run that waits for batch answers."""
INTERRUPTED = 130
_CODES = {Reason.WAITING: WAITING, Reason.INTERRUPTED: INTERRUPTED, Reason.EXCESS: 1}


def run_session(
    folder: RunFolder,
    *,
    answers: Path | None = None,
    workers: int | None = None,
    fleet: str = "local",
    gpus: str = "auto",
    quiet: bool = False,
    zygotes: Zygotes | None = None,
) -> int:
    """Runs or resumes the search of `folder`, writes its report and says what came out. Returns the exit code."""
    if answers is not None:
        from experiments.handwork import take_answers

        say(take_answers(folder, answers))
    try:
        summary = run_search(folder, workers=workers, fleet=fleet, gpus=gpus, quiet=quiet, zygotes=zygotes, warn=warn)
    except KeyboardInterrupt:
        say_next(folder)
        raise
    report = write_report(folder)
    announce(folder, summary, report)
    return _CODES.get(summary.reason, 0 if summary.best else 1)


def run_search(
    folder: RunFolder,
    *,
    workers: int | None = None,
    fleet: str = "local",
    gpus: str = "auto",
    quiet: bool = True,
    zygotes: Zygotes | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Summary:
    """The search alone. `warn` is told what is odd about the GPU. Raises WarpsmithError; after any error but a
    ProblemError the folder can be resumed.
    """
    manifest = folder.manifest
    strategy = make_strategy(manifest.strategy)
    model = restore_model(manifest.model_spec, manifest.model, folder.path)
    devices = _devices(folder, gpus)
    fit = choose_target(manifest.target.name, describe(devices[0]) if devices else None, measured=bool(devices))
    if fit.warning:
        warn(fit.warning)
    with _workers(folder, fleet, workers, devices, fit, zygotes) as crew:
        try:
            names = asyncio.run(_prepare(crew))
        except ProblemError:
            if not folder.journal.exists():
                shutil.rmtree(folder.path)
            raise
        deps = Deps(strategy=strategy, model=model, fleet=crew, devices=names)
        past = read_events(folder.journal)[0] if folder.journal.exists() else []
        if odd := other_gpus(names, past):
            warn(odd)
        view = nullcontext() if quiet else Live(manifest, past)
        with view as live:
            if live is None:
                return asyncio.run(search(folder, deps))
            return asyncio.run(search(folder, deps, live.see, stop=_ToldStop(live)))


def other_gpus(names: Sequence[str], past: Iterable[Mapping[str, Any]]) -> str:
    """What is to be said where not all GPUs of a run, in all its sessions, are alike; else nothing."""
    before = [name for event in past if event["t"] == "begin" for name in event.get("devices", ())]
    known = dict.fromkeys((*before, *names))
    if not names or len(known) < 2:
        return ""
    return f"this run measures on different GPUs: {', '.join(known)}; their speed-ups compare only roughly"


def _devices(folder: RunFolder, gpus: str) -> tuple[str, ...]:
    """GPUs of a session. A run that was begun without one is judged anew where there is one. Raises UsageError where
    the run needs one and there is none.
    """
    if found := chosen_gpus(gpus):
        return found
    if folder.measured():
        raise no_gpu()
    return ()


@contextmanager
def _workers(
    folder: RunFolder, fleet: str, workers: int | None, devices: Sequence[str], fit: Fit, zygotes: Zygotes | None
) -> Iterator[Fleet]:
    """The workers of a session. They may be of another kind in the next one."""
    problem, target, seed = folder.manifest.problem, fit.target.name, _input_seed(folder)
    options: dict[str, Any] = {"target": target, "seed": seed, "measured": bool(devices), "figures": fit.figures.name}
    options["tuned"] = folder.manifest.tuned if devices else None
    with ExitStack() as opened:
        if fleet == "local":
            warm = zygotes or opened.enter_context(open_zygotes())
            judge = Judge(problem, warm, **options)
            benches = [GpuBench(problem, seed, name, target=target) for name in devices]
            hosts = [opened.enter_context(closing(bench)) for bench in benches]
            yield opened.enter_context(LocalFleet(judge, workers or os.cpu_count() or 1, hosts))
            return
        from tools.fleet.host import Recipe
        from tools.fleet.ray import RayFleet, ray_cluster

        opened.enter_context(ray_cluster(fleet, cpus=workers, gpus=len(devices)))
        judging = Recipe("tools.fleet.warm:WarmJudge", {"problem": problem, **options})
        measuring = Recipe("verifier.gpu.bench:GpuBench", {"problem": problem, "seed": seed, "target": target})
        yield opened.enter_context(RayFleet(judging, measuring if devices else None, workers=workers))


async def _prepare(fleet: Fleet) -> tuple[str, ...]:
    """Warms one CPU worker, which checks the problem, and all GPUs at once; gives the names of these."""

    async def warm(lease: AbstractAsyncContextManager[Worker]) -> Any:
        async with lease as worker:
            return await worker.run("prepare")

    _, *names = await asyncio.gather(warm(fleet.cpu()), *(warm(fleet.gpu()) for _ in range(fleet.gpus)))
    return tuple(filter(None, names))


class _ToldStop(Stop):
    """A stop that the view shows: attempts in flight may take a while to end their stage."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live

    def request(self) -> None:
        super().request()
        self._live.stopping(self.cancel)


def _input_seed(folder: RunFolder) -> int:
    """Seed of the judge's inputs: follows from the run, so that a resumed run is judged on the same ones."""
    text = f"{folder.manifest.run}/{folder.manifest.created}/{folder.manifest.seed}/{folder.manifest.problem_id}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
