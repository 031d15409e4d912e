"""A fleet on this machine: workers are threads, because what they run waits for other processes.

All CPU workers share one bench, which is safe from several threads; each GPU worker has the supervisor of its device.
The hosts are the caller's: the fleet does not end them.

What it does not do: stop a call that runs. A cancelled attempt leaves at once, its worker is free when the call has
returned. Benches and supervisors have time limits of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from tools.fleet.pool import Lease, Pool


class _ThreadSlot:
    def __init__(self, host: Any, threads: ThreadPoolExecutor) -> None:
        self._host, self._threads = host, threads
        self._running: asyncio.Future[Any] | None = None

    async def run(self, method: str, args: tuple[Any, ...]) -> Any:
        self._running = asyncio.wrap_future(self._threads.submit(getattr(self._host, method), *args))
        return await asyncio.shield(self._running)

    def unsettled(self) -> asyncio.Future[Any] | None:
        return self._running if self._running is not None and not self._running.done() else None


class LocalFleet:
    """`workers` CPU workers that share `bench`, and one GPU worker for each supervisor in `devices`."""

    name = "local"

    def __init__(self, bench: Any, workers: int, devices: Sequence[Any] = ()) -> None:
        if workers < 1:
            raise ValueError("a fleet has at least one worker")
        self.gpus = len(devices)
        self._threads = ThreadPoolExecutor(workers + len(devices), thread_name_prefix="fleet")
        self._cpu = Pool([_ThreadSlot(bench, self._threads) for _ in range(workers)], "CPU")
        self._gpu = Pool([_ThreadSlot(device, self._threads) for device in devices], "GPU")

    def cpu(self) -> AbstractAsyncContextManager[Lease]:
        """A lease of one CPU worker, first come first served."""
        return self._cpu.lease()

    def gpu(self) -> AbstractAsyncContextManager[Lease]:
        """A lease of one GPU, first come first served. Raises InfrastructureError when there is none."""
        return self._gpu.lease()

    def close(self) -> None:
        """Takes no more work; calls that run are left to their own time limits."""
        self._cpu.close()
        self._gpu.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
