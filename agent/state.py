"""The state of one attempt in the graph: ids, numbers and short texts only. What is big lives in the blob
store.

A checkpoint holds the whole state at each step, so a source or a completion in it would be written many times
over.
"""

from __future__ import annotations

from typing import TypedDict


class AttemptState(TypedDict):
    attempt: str
    """Id, `a0001`."""
    turn: int
    """Model calls begun; the given candidate counts as one."""
    turns: int
    """Most model calls, repairs included."""
    candidate: str | None
    """Id of the candidate of this turn."""
    status: str | None
    """Set when a stage has decided."""
    duplicate: str | None
    """Attempt that judged the same source before."""
    note: str
    """Why the attempt ended before its repairs were used; short."""


def initial(attempt: str, *, turns: int, candidate: str | None = None) -> AttemptState:
    """The whole state at the start: it replaces whatever an older checkpoint of the thread holds."""
    given = candidate is not None
    return AttemptState(
        attempt=attempt,
        turn=1 if given else 0,
        turns=1 if given else turns,
        candidate=candidate,
        status=None,
        duplicate=None,
        note="",
    )
