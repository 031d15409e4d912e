"""A verdict on its way into the journal: stored first, with the feedback that the next prompt shows."""

from __future__ import annotations

import asyncio
from typing import Any

from agent.context import Context
from agent.feedback import feedback
from verifier.problem import Role
from verifier.verdict import Verdict


async def judged_event(context: Context, verdict: Verdict, text: str | None = None, *sources: str) -> dict[str, Any]:
    """What the events of a judged candidate share. `text` is the feedback where it does not come from the verdict;
    `sources` are blobs that must be on the disk with it.
    """
    hidden = frozenset(w.name for w in context.folder.manifest.problem.workloads if Role.HELD_OUT in w.roles)
    blobs = context.folder.blobs
    digest = blobs.put(verdict.model_dump_json())
    await asyncio.to_thread(blobs.sync, [digest, *sources])
    return {
        "verdict": digest,
        "feedback": feedback(verdict, hidden=hidden) if text is None else text,
        "status": verdict.status.value,
        "score": verdict.score,
        "confirmed": verdict.confirmed,
    }
