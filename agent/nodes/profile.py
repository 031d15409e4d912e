"""profile: speed of a candidate that passed its test. Without a GPU: an estimate from the compiled plan."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from agent.context import Context
from agent.state import AttemptState


async def profile(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    context, attempt = runtime.context, runtime.context.attempt(state["attempt"])
    context.progress(attempt.id, "profile")
    await context.judge.profile(context.candidate(attempt, state["turn"]), attempt.id)
    return {"status": None}
