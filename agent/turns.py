"""One model call of an attempt: composed from the history, reserved, and written to the journal before it may
go out.

The first turn is opened by the loop before the attempt starts, so that nothing is dispatched whose
reservation does not fit; repairs are opened by the generate node. Opening a turn again gives the recorded
request, not a newly composed one.
"""

from __future__ import annotations

import hashlib
import math

from pydantic import ValidationError

from agent.asking import StrategyError
from agent.context import Context
from agent.history import Attempt, Turn
from agent.prompting import Shown
from strategies.base import Operator
from tools.models import charging
from tools.models.base import ModelRequest, Sampling


def open_turn(context: Context, attempt: Attempt, number: int) -> ModelRequest:
    """The request of turn `number`, recorded and reserved. Raises BudgetExhausted when it does not fit."""
    blobs = context.folder.blobs
    turn = attempt.turn(number)
    if turn is not None and turn.messages is not None and turn.messages in blobs:
        request = ModelRequest.model_validate_json(blobs.text(turn.messages))
    else:
        request = compose(context, attempt, number)
    if turn is None or turn.status is None:
        context.hold_gpu(request.id)
    _reserve(context, attempt, request)
    if turn is None:
        digest = blobs.put(request.model_dump_json())
        event = {
            "t": "turn",
            "attempt": attempt.id,
            "turn": number,
            "request": request.id,
            "messages": digest,
        }
        context.record(event)
    return request


def compose(context: Context, attempt: Attempt, number: int) -> ModelRequest:
    """The prompt of an operator, or of a repair of the attempt's own last turn."""
    manifest, proposal = context.folder.manifest, attempt.proposal
    if number == 1:
        operator = proposal.operator
        parents = [_ended(context, name) for name in proposal.parents]
        others = [_ended(context, name) for name in proposal.context]
    else:
        operator, others = Operator.REPAIR, []
        parents = [_shown(context, attempt.id, attempt.turns[number - 2])]
    system = context.prompts.system(manifest.problem, manifest.target.model_dump(), manifest.versions.get("triton", ""))
    user = context.prompts.user(operator, manifest.problem, parents, others)
    name = f"{attempt.id}/{number}"
    return ModelRequest(id=name, messages=(system, user), sampling=_sampling(context, attempt, name))


def _reserve(context: Context, attempt: Attempt, request: ModelRequest) -> None:
    """Holds the bound of a request, unless it is held or was answered already."""
    gateway = context.gateway(attempt.proposal.model)
    is_open = any(key == request.id or key.startswith(f"{request.id}@") for key in context.ledger.open)
    if not is_open and gateway.store.get(request) is None:
        context.ledger.reserve(request.id, charging.bound(gateway.model.profile, request))


def _sampling(context: Context, attempt: Attempt, name: str) -> Sampling:
    seed = hashlib.sha256(f"{context.folder.manifest.seed}/{name}".encode()).digest()[:4]
    own = {"seed": int.from_bytes(seed) >> 1, **attempt.proposal.sampling}
    try:
        return Sampling.model_validate(context.folder.manifest.sampling.model_dump() | own)
    except ValidationError as error:
        raise StrategyError(f"{attempt.id} asks for sampling parameters that do not exist: {error}") from error


def _ended(context: Context, name: str) -> Shown:
    return _shown(context, name, context.attempt(name).judged[-1])


def _shown(context: Context, name: str, turn: Turn) -> Shown:
    blobs = context.folder.blobs
    summary = f"{turn.status}" if turn.score is None else f"{turn.status}, speed-up {math.exp(turn.score):.3f}x"
    return Shown(
        name=name,
        summary=summary,
        source=blobs.text(turn.source).rstrip("\n") if turn.source else None,
        feedback=turn.feedback,
    )
