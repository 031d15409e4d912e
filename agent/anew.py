"""What a run without a GPU kept, judged again where there is one.

An estimate and a measurement never stand in one ranking: from the event `measure` on, what was correct, untested or
untraceable has no score until it was judged anew, and nothing is proposed before that. The questions of the estimated
part replay as they were asked; the new verdicts are events of their own. Each costs GPU seconds under the key
`TURN/anew`.
"""

from __future__ import annotations

from agent.confirming import confirm_best
from agent.context import ANEW, Context
from agent.history import Attempt
from agent.verdicts import judged_event
from tools.metering import Charge
from verifier.bench import CONFIRM_SECONDS, VISIT_SECONDS


def hold(context: Context, attempt: Attempt, number: int) -> None:
    """Reserves the GPU seconds of one verdict. Raises BudgetExhausted."""
    key = f"{attempt.turns[number - 1].request}/{ANEW}"
    context.ledger.reserve(key, Charge(gpu_seconds=VISIT_SECONDS + CONFIRM_SECONDS))


async def judge_anew(context: Context, attempt: Attempt, number: int) -> str:
    """Judges the candidate of a turn and records what came of it, for all turns with the same source."""
    turn, owner = attempt.turns[number - 1], f"anew/{attempt.id}/{number}"
    candidate = context.candidate(attempt, number)

    def progress(stage: str) -> None:
        context.progress(attempt.id, f"anew: {stage}")

    try:
        progress("test")
        await confirm_best(context, candidate, owner, turn.request, progress)
        verdict = await context.judge.verdict(candidate, owner)
        event = await judged_event(context, owner, verdict, candidate)
        where = {"attempt": attempt.id, "turn": number, "candidate": candidate.id}
        context.settle_gpu({"t": "anew", **where, **event}, owner, turn.request)
    finally:
        context.judge.release(owner)
    return ""
