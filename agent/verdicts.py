"""A verdict on its way into the journal: stored first, with the feedback that the next prompt shows."""

from __future__ import annotations

import asyncio
from typing import Any

from agent.context import Context
from agent.feedback import feedback
from verifier.candidate import Candidate
from verifier.problem import Role
from verifier.verdict import Verdict


async def judged_event(
    context: Context, owner: str, verdict: Verdict, candidate: Candidate | None, text: str | None = None
) -> dict[str, Any]:
    """What the events of judged candidates share; `owner` holds the candidate's stages. `text` is the feedback where it
    does not come from the verdict. Where the file itself does not do what its plan does, the plan is stored too.
    """
    blobs, hidden = context.folder.blobs, _hidden(context)
    plan = None
    if candidate is not None and verdict.duplicate_of is None and verdict.confirmed and verdict.ships_plan:
        plan = blobs.put(await context.judge.plan(candidate, owner))
    stored = {
        "verdict": blobs.put(verdict.model_dump_json()),
        "source": None if candidate is None else blobs.put(candidate.source),
        "plan": plan,
    }
    await asyncio.to_thread(blobs.sync, filter(None, stored.values()))
    event = {
        "verdict": stored["verdict"],
        "feedback": feedback(verdict, hidden=hidden) if text is None else text,
        "status": verdict.status.value,
        "score": verdict.score,
        "confirmed": verdict.confirmed,
        "live": verdict.path == "live",
    }
    return event | ({"plan": plan} if plan else {})


def _hidden(context: Context) -> frozenset[str]:
    return frozenset(w.name for w in context.folder.manifest.problem.workloads if Role.HELD_OUT in w.roles)
