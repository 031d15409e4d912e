"""test: correctness of a candidate that compiled."""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime

from agent.context import Context
from agent.state import AttemptState


async def test(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    context, attempt = runtime.context, runtime.context.attempt(state["attempt"])
    context.progress(attempt.id, "test")
    stage = await context.judge.test(context.candidate(attempt, state["turn"]), attempt.id)
    return {"status": stage.status.value if stage and stage.status else None}
