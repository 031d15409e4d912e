"""Asking a run to stop. The first request drains: what is in flight ends its node, then the run is left
resumable. The second cancels: model calls in flight are given up and charged at their reservation.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """A request to stop, made once or twice, from the event loop's thread."""

    def __init__(self) -> None:
        self.requests = 0
        self._changed = asyncio.Event()

    def request(self) -> None:
        """Once to drain, twice to cancel."""
        self.requests += 1
        self._changed.set()

    @property
    def drain(self) -> bool:
        return self.requests >= 1

    @property
    def cancel(self) -> bool:
        return self.requests >= 2

    async def wait(self) -> None:
        """Returns at the next request."""
        await self._changed.wait()
        self._changed.clear()

    @contextmanager
    def on_interrupt(self) -> Iterator[None]:
        """SIGINT and SIGTERM make requests instead of raising, while the block runs in the main thread's
        event loop.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.request)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGINT, before)
