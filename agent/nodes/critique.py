"""critique: the verdict of the turn and the feedback that the next prompt shows, both written to the journal
once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from langgraph.runtime import Runtime

from agent.context import Context
from agent.feedback import feedback, unparsable
from agent.history import Attempt
from agent.state import AttemptState
from verifier.problem import Role
from verifier.verdict import Stage, Status, Verdict


async def critique(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    context, attempt = runtime.context, runtime.context.attempt(state["attempt"])
    turn = attempt.turns[state["turn"] - 1]
    if turn.status is None:
        context.progress(attempt.id, "critique")
        verdict = await _verdict(context, attempt, state)
        text = feedback(verdict, hidden=_hidden(context)) if turn.candidate else unparsable(turn.parsed)
        await _record(context, attempt, state, verdict, text)
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
    return await context.judge.verdict(context.candidate(attempt, state["turn"]), attempt.id)


async def _record(context: Context, attempt: Attempt, state: AttemptState, verdict: Verdict, text: str) -> None:
    blobs, source = context.folder.blobs, attempt.turns[state["turn"] - 1].source
    digest = blobs.put(verdict.model_dump_json())
    await asyncio.to_thread(blobs.sync, [digest, source] if source else [digest])
    context.record(
        {
            "t": "verdict",
            "attempt": attempt.id,
            "turn": state["turn"],
            "verdict": digest,
            "feedback": text,
            "status": verdict.status.value,
            "score": verdict.score,
            "duplicate_of": state["duplicate"],
        }
    )


def _hidden(context: Context) -> frozenset[str]:
    return frozenset(w.name for w in context.folder.manifest.problem.workloads if Role.HELD_OUT in w.roles)
