"""A fleet on this machine: CPU workers are threads, because what they run waits for sandboxed processes.

What it does not do: stop a function that runs. A cancelled attempt leaves at once, its worker is free when
the function has returned. The functions of the bench have time limits of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from verifier.errors import InfrastructureError

P = ParamSpec("P")
T = TypeVar("T")


class LocalWorker:
    """One leased thread. It serves one function at a time."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self.busy: Future[object] | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises what the function raises; InfrastructureError when the fleet was closed."""
        if self.busy is not None and not self.busy.done():
            raise InfrastructureError("this worker is busy: a lease runs one function at a time")
        try:
            future = self._threads.submit(function, *args, **kwargs)
        except RuntimeError as error:
            raise InfrastructureError(f"the fleet is closed: {error}") from error
        self.busy = future  # type: ignore[assignment]  # Future is invariant, only done() is used
        return await asyncio.wrap_future(future)


class LocalFleet:
    """`workers` CPU workers. A fleet belongs to the event loop that first waits for a lease."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError("a fleet has at least one worker")
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="fleet")
        self._free = asyncio.Semaphore(workers)

    @asynccontextmanager
    async def cpu(self) -> AsyncIterator[LocalWorker]:
        """A lease of one CPU worker, first come first served."""
        await self._free.acquire()
        worker = LocalWorker(self._threads)
        try:
            yield worker
        finally:
            self._give_back(worker)

    def close(self) -> None:
        """Takes no more work; functions that run are left to their own time limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _give_back(self, worker: LocalWorker) -> None:
        if worker.busy is None or worker.busy.done():
            self._free.release()
            return
        loop = asyncio.get_running_loop()

        def release(_: Future[object]) -> None:
            with suppress(RuntimeError):  # the loop has ended, and its leases with it
                loop.call_soon_threadsafe(self._free.release)

        worker.busy.add_done_callback(release)
