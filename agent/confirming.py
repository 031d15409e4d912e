"""What a candidate goes through before it is called best: a second visit that confirms, then a closer look.

Best is chosen among confirmed scores alone: the first of many noisy scores is mostly the luckiest one. A candidate that
does not hold up is not correct, and its verdict says why; one that is slower than it seemed has its confirmed score.
The seconds of the second visit are held before the attempt begins. Those of the closer look are held when it is due,
and without room for them there is none.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.context import EXAMINE, Context
from tools.metering import BudgetExhausted, Charge
from verifier.bench import EXAMINE_SECONDS
from verifier.candidate import Candidate
from verifier.verdict import Diagnostic, Verdict


async def confirm_best(
    context: Context, candidate: Candidate, attempt: str, request: str, progress: Callable[[str], None]
) -> None:
    """Confirms and examines a candidate whose stages `attempt` holds, where it would be the best of a measured run.
    Once in a process: a node that goes on after a kill asks again.
    """
    judge = context.judge
    if not judge.measures or not judge.first_weighing(candidate, attempt):
        return
    if not _leads(context, await judge.verdict(candidate, attempt)):
        return
    progress("confirm")
    await judge.confirm(candidate, attempt)
    verdict = await judge.verdict(candidate, attempt)
    if not context.folder.manifest.examine or not verdict.confirmed or not _leads(context, verdict):
        return
    try:
        context.ledger.reserve(f"{request}/{EXAMINE}", Charge(gpu_seconds=EXAMINE_SECONDS))
    except BudgetExhausted as short:
        said = f"no closer look: {short}"
        await judge.remark(candidate, attempt, Diagnostic(severity="warning", code="not-examined", message=said))
        return
    progress("examine")
    await judge.examine(candidate, attempt)


def _leads(context: Context, verdict: Verdict) -> bool:
    best = context.history.best()
    return verdict.score is not None and (best is None or verdict.score > (best.score or 0.0))
