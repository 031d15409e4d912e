"""One session on a run folder: the sandbox, the judge, the fleet and the search, with a live view around them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

from agent.journal import read_events
from agent.run_folder import RunFolder
from agent.search import Reason, Summary, search
from agent.session import Deps
from agent.stop import Stop
from experiments.live import Live, announce, say, say_next
from experiments.report import write_report
from strategies import make_strategy
from tools.fleet.local import LocalFleet
from tools.models import restore_model
from verifier.errors import ProblemError
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
    quiet: bool = False,
    zygotes: Zygotes | None = None,
) -> int:
    """Runs or resumes the search of `folder`, writes its report and says what came out. Returns the exit code."""
    if answers is not None:
        from experiments.handwork import take_answers

        say(take_answers(folder, answers))
    try:
        summary = run_search(folder, workers=workers, quiet=quiet, zygotes=zygotes)
    except KeyboardInterrupt:
        say_next(folder)
        raise
    report = write_report(folder)
    announce(folder, summary, report)
    return _CODES.get(summary.reason, 0 if summary.best else 1)


def run_search(
    folder: RunFolder, *, workers: int | None = None, quiet: bool = True, zygotes: Zygotes | None = None
) -> Summary:
    """The search alone. Raises WarpsmithError; the folder can be resumed after any error but a ProblemError."""
    manifest = folder.manifest
    strategy = make_strategy(manifest.strategy)
    model = restore_model(manifest.model_spec, manifest.model, folder.path)
    servers = nullcontext(zygotes) if zygotes else open_zygotes()
    with servers as warm, LocalFleet(workers or os.cpu_count() or 1) as fleet:
        judge = Judge(manifest.problem, warm, target=manifest.target.name, seed=_input_seed(folder))
        try:
            judge.prepare()
        except ProblemError:
            if not folder.journal.exists():
                shutil.rmtree(folder.path)
            raise
        deps = Deps(strategy=strategy, model=model, bench=judge, fleet=fleet)
        past = read_events(folder.journal)[0] if folder.journal.exists() else []
        view = nullcontext() if quiet else Live(manifest, past)
        with view as live:
            if live is None:
                return asyncio.run(search(folder, deps))
            return asyncio.run(search(folder, deps, live.see, stop=_ToldStop(live)))


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
