"""One session on a run folder: the sandbox, the judge, the fleet and the search, with a live view around them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

from agent.journal import read_events
from agent.run_folder import RunFolder
from agent.search import Reason, Summary, search
from agent.session import Deps
from agent.stop import Stop
from experiments.live import Live, announce, say, say_next
from experiments.report import write_report
from strategies import make_strategy
from tools.fleet.base import Fleet, Worker
from tools.fleet.local import LocalFleet
from tools.models import restore_model
from verifier.errors import ProblemError, UsageError
from verifier.gpu.bench import GpuBench
from verifier.gpu.found import chosen_gpus
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
        summary = run_search(folder, workers=workers, fleet=fleet, gpus=gpus, quiet=quiet, zygotes=zygotes)
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
) -> Summary:
    """The search alone. Raises WarpsmithError; the folder can be resumed after any error but a ProblemError."""
    manifest = folder.manifest
    strategy = make_strategy(manifest.strategy)
    model = restore_model(manifest.model_spec, manifest.model, folder.path)
    with _workers(folder, fleet, workers, _devices(folder, gpus), zygotes) as crew:
        try:
            asyncio.run(_prepare(crew))
        except ProblemError:
            if not folder.journal.exists():
                shutil.rmtree(folder.path)
            raise
        deps = Deps(strategy=strategy, model=model, fleet=crew)
        past = read_events(folder.journal)[0] if folder.journal.exists() else []
        view = nullcontext() if quiet else Live(manifest, past)
        with view as live:
            if live is None:
                return asyncio.run(search(folder, deps))
            return asyncio.run(search(folder, deps, live.see, stop=_ToldStop(live)))


def _devices(folder: RunFolder, gpus: str) -> tuple[str, ...]:
    """GPUs of a session: none for a run that was begun without one. Raises UsageError where the run needs one."""
    if not folder.manifest.measured:
        if gpus not in ("auto", "none"):
            raise UsageError("this run goes by estimates", next_step="start another one to measure on a GPU")
        return ()
    if found := chosen_gpus(gpus):
        return found
    raise UsageError(
        "this run measures on a GPU, and none is chosen here",
        next_step="resume it where a GPU is, or start another run with --gpus none",
    )


@contextmanager
def _workers(
    folder: RunFolder, fleet: str, workers: int | None, devices: Sequence[str], zygotes: Zygotes | None
) -> Iterator[Fleet]:
    """The workers of a session. They may be of another kind in the next one."""
    manifest, seed = folder.manifest, _input_seed(folder)
    options = {"problem": manifest.problem, "target": manifest.target.name, "seed": seed}
    with ExitStack() as opened:
        if fleet == "local":
            warm = zygotes or opened.enter_context(open_zygotes())
            judge = Judge(manifest.problem, warm, target=manifest.target.name, seed=seed, measured=manifest.measured)
            hosts = [opened.enter_context(closing(GpuBench(manifest.problem, seed, name))) for name in devices]
            yield opened.enter_context(LocalFleet(judge, workers or os.cpu_count() or 1, hosts))
            return
        from tools.fleet.host import Recipe
        from tools.fleet.ray import RayFleet, ray_cluster

        opened.enter_context(ray_cluster(fleet, cpus=workers, gpus=len(devices)))
        judging = Recipe("tools.fleet.warm:WarmJudge", options | {"measured": manifest.measured})
        measuring = Recipe("verifier.gpu.bench:GpuBench", {"problem": manifest.problem, "seed": seed})
        yield opened.enter_context(RayFleet(judging, measuring if devices else None, workers=workers))


async def _prepare(fleet: Fleet) -> None:
    """Warms one CPU worker, which checks the problem, and all GPUs at once."""

    async def warm(lease: AbstractAsyncContextManager[Worker]) -> None:
        async with lease as worker:
            await worker.run("prepare")

    await asyncio.gather(warm(fleet.cpu()), *(warm(fleet.gpu()) for _ in range(fleet.gpus)))


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
