"""generate: one metered model call and its parsing. A reply without a candidate is an outcome of the turn,
charged as any.
"""

from __future__ import annotations

from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import interrupt

from agent.context import Context
from agent.history import Attempt
from agent.parsing import Parsed, parse
from agent.state import AttemptState
from agent.turns import open_turn
from tools.metering import BudgetExhausted
from tools.models.base import AnswerPending, Completion, ModelRequest
from verifier.candidate import Candidate


async def generate(state: AttemptState, runtime: Runtime[Context]) -> dict[str, Any]:
    """A repair that does not fit the budget ends the attempt; a first call raises BudgetExhausted."""
    context, number = runtime.context, state["turn"] + 1
    attempt = context.attempt(state["attempt"])
    context.progress(attempt.id, "generate")
    try:
        completion = await _answer(context, attempt, open_turn(context, attempt, number))
    except BudgetExhausted as error:
        if number == 1:
            raise
        return {"note": f"no repair: {error}"}
    source = _take(context, attempt, number, completion)
    return {"turn": number, "candidate": source, "status": None, "duplicate": None}


async def _answer(context: Context, attempt: Attempt, request: ModelRequest) -> Completion:
    """The completion. While a batch model has none, the graph is interrupted; each resume asks again."""
    while True:
        try:
            return await context.gateway(attempt.proposal.model).complete(request)
        except AnswerPending:
            if not attempt.waiting:
                context.record({"t": "wait", "attempt": attempt.id, "request": request.id})
            interrupt({"request": request.id})


def _take(context: Context, attempt: Attempt, number: int, completion: Completion) -> str | None:
    """Stores and records the answer once; gives the candidate's id or None."""
    turn = attempt.turns[number - 1]
    if turn.completion is None:
        blobs, parsed = context.folder.blobs, _parsed(completion)
        context.record(
            {
                "t": "answer",
                "attempt": attempt.id,
                "turn": number,
                "completion": blobs.put(completion.model_dump_json()),
                "source": blobs.put(parsed.source) if parsed.source else None,
                "candidate": Candidate(source=parsed.source).id if parsed.source else None,
                "parsed": parsed.problem,
            }
        )
    return turn.candidate


def _parsed(completion: Completion) -> Parsed:
    parsed = parse(completion.text)
    if parsed.source is None and completion.finish_reason == "length":
        return Parsed(None, f"{parsed.problem} It was cut off at the limit of output tokens; be shorter.")
    return parsed
