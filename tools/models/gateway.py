"""The one way to a model: a call is reserved before it goes out, stored before it returns, and settled.

    stored before    returned; no request, no charge
    otherwise        reserve the bound, mark "sent" on disk, ask the model, answer on disk, settle, return

What becomes of the reservation when there is no answer:

    ModelError       refunded. Failed HTTP attempts carry no tokens; the store keeps them with the dispatch.
    AnswerPending    held, so that what waits cannot be spent twice. The next call for the same request
                     reuses it; in a new process it is reserved again under the same key.
    StorageError     before the request: refunded. After it: settled, for the answer was paid, and raised.
    cancelled,       held. The mark on disk stays "sent": a resume charges it as lost
    killed, or any   (`CompletionStore.sent_unanswered`) and asks again under a new key. A model that sends
    other exception  nothing (`remote` false, or no language model) leaves no mark.

A crash between "stored" and "settled" leaves an answered dispatch without a settlement in the journal:
`CompletionStore.dispatches` has its key and its charge.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from tools.metering import Meter
from tools.models import charging
from tools.models.base import AnswerPending, Completion, Model, ModelError, ModelRequest
from tools.models.store import CompletionStore, Dispatch, Stored, file_name
from verifier.errors import StorageError


class Gateway:
    """Meters one model. Calls may overlap; two calls for the same request wait for one answer."""

    def __init__(self, model: Model, meter: Meter, store: CompletionStore) -> None:
        self.model = model
        self.meter = meter
        self.store = store
        self._waiting: dict[str, Dispatch] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def complete(self, request: ModelRequest) -> Completion:
        """The answer. Raises BudgetExhausted, ModelError, AnswerPending or StorageError."""
        async with self._locks.setdefault(file_name(request), asyncio.Lock()):
            stored = self.store.get(request)
            if stored is None:
                return await self._ask(request)
            return stored.completion if stored.key else self._accept(request, stored.completion)

    async def _ask(self, request: ModelRequest) -> Completion:
        dispatch = self._reserve(request)
        try:
            completion = await self.model.complete(request)
        except AnswerPending:
            self._hold(request, dispatch)
            raise
        except ModelError as error:
            self._fail(request, dispatch, error)
            raise
        return self._finish(request, dispatch, completion)

    def _accept(self, request: ModelRequest, completion: Completion) -> Completion:
        """Charges an answer that came from outside."""
        return self._finish(request, self._reserve(request, remote=False), completion)

    def _reserve(self, request: ModelRequest, *, remote: bool | None = None) -> Dispatch:
        """Holds the bound and leaves the mark on disk that the request may be out."""
        held = self._waiting.get(file_name(request))
        if held is not None:
            return held
        dispatch = self._next_dispatch(request)
        self.meter.reserve(dispatch.key, dispatch.bound)
        if self._is_remote() if remote is None else remote:
            try:
                self.store.mark(request, dispatch)
            except StorageError as error:
                self.meter.refund(dispatch.key, f"not sent: {error}")
                raise
        return dispatch

    def _next_dispatch(self, request: ModelRequest) -> Dispatch:
        """A new key, or that of the dispatch which waited when the run stopped."""
        log = self.store.log(request)
        waits = bool(log) and log[-1].state == "waiting"
        return Dispatch(
            key=log[-1].key if waits else f"{request.id}@{request.digest}#{len(log) + 1}",
            request=request.id,
            digest=request.digest,
            bound=charging.bound(self.model.profile, request),
            state="sent",
        )

    def _is_remote(self) -> bool:
        return self.model.profile.remote and self.model.profile.is_language_model

    def _hold(self, request: ModelRequest, dispatch: Dispatch) -> None:
        if file_name(request) not in self._waiting:
            self.store.mark(request, dispatch.model_copy(update={"state": "waiting"}))
            self._waiting[file_name(request)] = dispatch

    def _fail(self, request: ModelRequest, dispatch: Dispatch, error: ModelError) -> None:
        self._waiting.pop(file_name(request), None)
        self.meter.refund(dispatch.key, str(error))
        failed = {"state": "failed", "error": str(error), "attempts": error.attempts}
        self.store.mark(request, dispatch.model_copy(update=failed))

    def _finish(self, request: ModelRequest, dispatch: Dispatch, completion: Completion) -> Completion:
        actual = charging.actual(self.model.profile, completion.usage)
        stored = Stored(
            request=request.id,
            digest=request.digest,
            completion=completion,
            key=dispatch.key,
            bound=dispatch.bound,
            actual=actual,
        )
        self._waiting.pop(file_name(request), None)
        try:
            self.store.put(request, stored)
        finally:
            self.meter.settle(dispatch.key, actual)
        self.store.keep_profile(self.model.profile)
        return completion
