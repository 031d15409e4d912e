"""What a fleet gives: a lease, held by one attempt at a time, on which blocking functions run.

A lease is of one kind. `cpu` runs host work (the sandboxed trace, the interpreter, the comparer). A GPU kind
belongs beside it: `gpu()` gives exclusive time on one device, its held seconds are charged to the attempt,
and a hang frees the device by killing the process that holds it, never by waiting. A fleet that has no such
device does not have the method.

A function that raises InfrastructureError has met a broken worker; the attempt is re-run. A cancelled attempt
gives its lease back only when the function that runs on it has returned, so that a worker never serves two.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Worker(Protocol):
    """A leased worker."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs the blocking function on the worker and gives its result or raises what it raised."""
        ...


class Fleet(Protocol):
    """A pool of workers."""

    def cpu(self) -> AbstractAsyncContextManager[Worker]:
        """A lease of one CPU worker; waits, first come first served, while all are leased."""
        ...

    def close(self) -> None:
        """Takes no more work. Does not wait for functions that still run."""
        ...
