"""critique: the verdict of the turn and the feedback that the next prompt shows, both written to the journal
once.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from agent.confirming import confirm_best
from agent.context import Context
from agent.feedback import unparsable
from agent.history import Attempt
from agent.state import AttemptState
from agent.verdicts import judged_event
from verifier.verdict import Stage, Status, Verdict


async def critique(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    context, attempt = runtime.context, runtime.context.attempt(state["attempt"])
    turn = attempt.turns[state["turn"] - 1]
    if turn.status is None:
        context.progress(attempt.id, "critique")
        verdict, candidate = await _verdict(context, attempt, state), None
        if turn.candidate is not None:
            candidate = context.candidate(attempt, state["turn"])
        text = None if candidate else unparsable(turn.parsed)
        event = await judged_event(context, attempt.id, verdict, candidate, text)
        where = {"attempt": attempt.id, "turn": state["turn"], "duplicate_of": state["duplicate"]}
        context.settle_gpu({"t": "verdict", **where, **event}, attempt.id, turn.request)
        context.judge.release(attempt.id)
    return {"status": str(turn.status)}


async def _verdict(context: Context, attempt: Attempt, state: AttemptState) -> Verdict:
    turn = attempt.turns[state["turn"] - 1]
    if turn.candidate is None:
        return Verdict(
            candidate="",
            problem=context.folder.manifest.problem_id,
            status=Status.UNPARSABLE,
            stage=Stage.PARSE,
            reason=turn.parsed,
        )
    if state["duplicate"] and (earlier := context.history.judged[turn.candidate][1].verdict):
        known = Verdict.model_validate_json(context.folder.blobs.text(earlier))
        return known.model_copy(update={"duplicate_of": turn.candidate})
    candidate = context.candidate(attempt, state["turn"])
    await confirm_best(context, candidate, attempt.id, turn.request, lambda stage: context.progress(attempt.id, stage))
    return await context.judge.verdict(candidate, attempt.id)
