"""A recorded run answers again, answer for answer: same text, same usage, same charge, no server.

An answer is found by the request's id and digest, so a run that asks something else is told so instead of
being given the answer to another question.
"""

from __future__ import annotations

from pathlib import Path

from tools.models.base import Completion, ModelError, ModelProfile, ModelRequest
from tools.models.store import CompletionStore
from verifier.errors import UsageError


class Replay:
    """A `Model` over the completions of a run folder. The run may be unfinished; it is only read."""

    def __init__(self, run: Path) -> None:
        self._store = CompletionStore(run)
        recorded = self._store.profile()
        if recorded is None:
            raise UsageError(
                f"{run} holds no recorded completions",
                next_step="Give the folder of a run that a model has answered.",
            )
        self.profile: ModelProfile = recorded.model_copy(
            update={"name": f"replay:{recorded.name}", "base_url": "", "api_key_env": "", "remote": False}
        )

    async def complete(self, request: ModelRequest) -> Completion:
        """The recorded answer. Raises ModelError, which names the request, where the record has none."""
        stored = self._store.get(request)
        if stored is not None:
            return stored.completion
        others = self._store.find(request.id)
        asked = f"; it answered another question under that id (digest {others[0].digest})" if others else ""
        raise ModelError(f"the recorded run has no answer to {request.id} (digest {request.digest}){asked}")
