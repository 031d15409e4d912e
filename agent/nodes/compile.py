"""compile: trace, compile and audit. A source that was judged before in this run goes straight to its
verdict.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from agent.context import Context
from agent.state import AttemptState


async def compile(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    context, attempt = runtime.context, runtime.context.attempt(state["attempt"])
    turn = attempt.turns[state["turn"] - 1]
    if turn.status is not None:  # judged before a crash; the checkpoint is older than the journal
        return {"status": turn.status.value}
    context.progress(attempt.id, "compile")
    candidate = context.candidate(attempt, state["turn"])
    if earlier := await context.judge.claim(candidate.id, attempt.id):
        return {"status": "duplicate", "duplicate": earlier}
    stage = await context.judge.compile(candidate, attempt.id)
    return {"status": stage.status.value if stage.status else None}
