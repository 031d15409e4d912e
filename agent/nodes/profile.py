"""profile: speed of a candidate that passed its test, as its visit to a GPU measured it; a new best is confirmed and
examined there. Without a GPU: an estimate from the compiled plan.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from agent.confirming import confirm_best
from agent.context import Context
from agent.state import AttemptState


async def profile(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    context, attempt = runtime.context, runtime.context.attempt(state["attempt"])
    context.progress(attempt.id, "profile")
    candidate = context.candidate(attempt, state["turn"])
    await context.judge.profile(candidate, attempt.id)
    request = attempt.turns[state["turn"] - 1].request
    await confirm_best(context, candidate, attempt.id, request, lambda stage: context.progress(attempt.id, stage))
    return {"status": None}
