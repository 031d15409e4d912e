"""Leases over a fixed set of slots, the part that all fleets share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from verifier.errors import InfrastructureError


class Slot(Protocol):
    """The place of one worker."""

    async def run(self, method: str, args: tuple[Any, ...]) -> Any: ...

    def unsettled(self) -> asyncio.Future[Any] | None:
        """What must end before the slot can serve again; None when it can."""
        ...


class Lease:
    """Implements `Worker` on one slot."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._since = time.monotonic()
        self._until: float | None = None
        self._busy = False

    @property
    def held(self) -> float:
        return (self._until or time.monotonic()) - self._since

    async def run(self, method: str, *args: Any) -> Any:
        if self._busy or self._until is not None or self._slot.unsettled() is not None:
            raise InfrastructureError("a lease runs one call at a time, and none after its end")
        self._busy = True
        try:
            return await self._slot.run(method, args)
        finally:
            self._busy = False

    def end(self) -> None:
        self._until = time.monotonic()


class Pool:
    """Waiters are served in their order; the slot that came back last goes out first, because it is warm."""

    def __init__(self, slots: Sequence[Slot], kind: str) -> None:
        self._free = list(slots)
        self._size, self._kind = len(slots), kind
        self._count = asyncio.Semaphore(self._size)
        self._closed = False

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Lease]:
        if not self._size:
            raise InfrastructureError(f"this fleet has no {self._kind} worker")
        await self._count.acquire()
        if self._closed:
            self._count.release()  # for those who wait behind
            raise InfrastructureError("the fleet is closed")
        slot = self._free.pop()
        lease = Lease(slot)
        try:
            yield lease
        finally:
            lease.end()
            self._take_back(slot)

    def close(self) -> None:
        """Gives no further lease."""
        self._closed = True

    def _take_back(self, slot: Slot) -> None:
        if (rest := slot.unsettled()) is not None:
            rest.add_done_callback(lambda _: self._take_back(slot))
            return
        self._free.append(slot)
        self._count.release()
