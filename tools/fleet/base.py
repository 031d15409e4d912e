"""What a fleet gives: a lease of one worker, held by one attempt at a time.

On every worker lives one object, its host: a bench on a CPU worker, the supervisor of one GPU on a GPU worker. A
lease calls the host's methods. `cpu` runs host work (the sandboxed trace, the interpreter, the comparer); `gpu` gives
exclusive time on one device. A fleet without GPUs refuses `gpu`.

What sticks where. A lease sticks to its worker, nothing else does: hosts are alike, and what the later stages of a
candidate need travels with its `CompileStage.handle`. The handle is the fleet's own: an object here, a reference where
workers are other processes. It may be an argument of a call on any worker, of either kind, and it stays valid when the
worker that made it is gone, unless a whole node went with it.

A call that raises InfrastructureError has met a broken worker; the attempt is run again on a new lease. A worker is
leased again only when it serves nobody: a call that goes on after its attempt was cancelled is waited for, or ended.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


class Worker(Protocol):
    """A leased worker. It serves one call at a time."""

    @property
    def held(self) -> float:
        """Seconds that the lease has lasted so far, or lasted: what a GPU lease costs on the `gpu_seconds` axis."""
        ...

    async def run(self, method: str, *args: Any) -> Any:
        """Calls a method of the worker's host and gives its result or raises what it raised.

        Raises InfrastructureError when the worker broke, or was given back.
        """
        ...


class Fleet(Protocol):
    """A pool of workers of each kind. It belongs to the event loop that first waits for a lease."""

    name: str
    """As `--fleet` names it; the journal records it for each session."""

    gpus: int
    """GPU workers."""

    def cpu(self) -> AbstractAsyncContextManager[Worker]:
        """A lease of one CPU worker; waits, first come first served, while all are leased."""
        ...

    def gpu(self) -> AbstractAsyncContextManager[Worker]:
        """A lease of one GPU, in the same way. Raises InfrastructureError when the fleet has none."""
        ...

    def close(self) -> None:
        """Takes no more work and ends the workers that are processes."""
        ...
