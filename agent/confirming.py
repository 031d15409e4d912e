"""What a candidate goes through before it is called best: a second visit that confirms, a run of the file itself beside
the plan that was judged, then a closer look.

Best is chosen among confirmed scores alone: the first of many noisy scores is mostly the luckiest one. A candidate that
does not hold up is not correct, and its verdict says why; one that is slower than it seemed has its confirmed score.
The seconds of the second visit are held before the attempt begins. Those of the other two are held when they are due,
and without room for them they are left out, which the verdict says.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.context import EXAMINE, FILE, Context
from tools.metering import BudgetExhausted, Charge
from verifier.bench import EXAMINE_SECONDS, FILE_SECONDS
from verifier.candidate import Candidate
from verifier.verdict import Diagnostic

_CALLS = {FILE: "compare_file", EXAMINE: "examine"}
_SKIPPED = {FILE: "file-not-run", EXAMINE: "not-examined"}


async def confirm_best(
    context: Context, candidate: Candidate, attempt: str, request: str, progress: Callable[[str], None]
) -> None:
    """Confirms and examines a candidate whose stages `attempt` holds, where it would be the best of a measured run.
    Once in a process: a node that goes on after a kill asks again.
    """
    judge = context.judge
    if not judge.measures or not judge.first_weighing(candidate, attempt):
        return
    verdict = await judge.verdict(candidate, attempt)

    def leads() -> bool:
        best = context.history.best()
        return verdict.score is not None and (best is None or verdict.score > (best.score or 0.0))

    if not leads():
        return
    progress("confirm")
    if not await judge.look("confirm", candidate, attempt, leads):
        return
    verdict = await judge.verdict(candidate, attempt)
    if not verdict.confirmed or not leads():
        return
    looks = [(FILE, FILE_SECONDS), *([(EXAMINE, EXAMINE_SECONDS)] if context.folder.manifest.examine else [])]
    for look, seconds in looks:
        try:
            context.ledger.reserve(f"{request}/{look}", Charge(gpu_seconds=seconds))
        except BudgetExhausted as short:
            await judge.remark(
                candidate, attempt, Diagnostic(severity="warning", code=_SKIPPED[look], message=str(short))
            )
            continue
        progress(look)
        await judge.look(_CALLS[look], candidate, attempt, leads)
