"""A fleet of Ray actors: one CPU worker per core that is used, one supervisor per GPU, on one machine or a cluster.

Each CPU worker is an actor with a warm judge of its own, started when a lease first needs it; each GPU is held by one
actor without CUDA, which owns the processes that use the device. Handles stay in Ray's object store beside the worker
that made them; workers pass them on by reference and the search process never reads them. Nothing waits for a group.

A worker that dies, a lost node or a lost object is an InfrastructureError of the call that met it, in one sentence. A
call over its deadline, or of a cancelled attempt, is ended with its process, and so are the processes below it. Ray
starts the actor again; its slot is leased again when the new process answers. Nothing is tried twice here.

Every node needs the same versions of this project, its packages and Python. Nodes trust each other: what they exchange
is pickled. Ray itself keeps a token for its clusters in the user's home. Source of the pattern: the pages on fault
tolerance of actors in Ray's documentation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import ray
from ray import exceptions as faults

from tools.fleet.host import Recipe, Resident, with_handle
from tools.fleet.pool import Lease, Pool
from verifier.bench import CompileStage
from verifier.errors import InfrastructureError, UsageError

OBJECT_STORE_BYTES = 512 << 20
"""Of a Ray that is started here. What does not fit is written to disk."""
CPU_SECONDS, GPU_SECONDS, START_SECONDS = 600.0, 300.0, 300.0
"""Deadlines of one call; the call that starts its worker has START_SECONDS more. Benches and supervisors have tighter
ones of their own.
"""
_CLOSE_SECONDS = 10.0
_ENVIRON = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
"""No report to Ray's makers; no log line for the half of a call's answer that nobody asked for."""
_SENTENCES: dict[type[Exception], str] = {
    faults.NodeDiedError: "its node was lost",
    faults.OutOfMemoryError: "its node ran out of memory",
    faults.RayActorError: "its process ended",
    faults.WorkerCrashedError: "its process ended",
    faults.ObjectLostError: "what an earlier stage kept was lost with its node",
}
"""By the first class that fits."""


@contextmanager
def ray_cluster(fleet: str = "ray", *, cpus: int | None = None, gpus: int | None = None) -> Iterator[None]:
    """Connects this process to Ray while the block runs.

    `fleet`: `ray:auto` for the cluster that this machine is part of, `ray://HOST:PORT` for another one. `ray` for the
    one that the variable RAY_ADDRESS names, else for a Ray of our own, with `cpus` and `gpus` (default: what the
    machine has), which ends with the block. Raises UsageError for another name and when no cluster answers.
    """
    if fleet not in ("ray", "ray:auto") and not fleet.startswith("ray://"):
        raise UsageError(f"unknown fleet {fleet!r}", next_step="choose local, ray, ray:auto or ray://HOST:PORT")
    os.environ |= _ENVIRON
    address = os.environ.get("RAY_ADDRESS", "") if fleet == "ray" else fleet.removeprefix("ray:auto") or "auto"
    if address:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            step = "check the address; a cluster that asks for a token needs RAY_AUTH_MODE=token here too"
            raise UsageError(f"no Ray cluster answers at {address}: {reason}", next_step=step) from error
        folder = None
    else:
        folder = tempfile.mkdtemp(prefix="ray-")
        ray.init(
            "local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder, log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


class _ActorSlot:
    """The place of one actor. It is started by the first call."""

    def __init__(self, start: Callable[[], Any], kind: str, deadline: float) -> None:
        self._start, self._kind, self._deadline = start, kind, deadline
        self.actor: Any = None
        self._revival: asyncio.Task[None] | None = None

    async def run(self, method: str, args: tuple[Any, ...]) -> Any:
        seconds = self._deadline + (START_SECONDS if self.actor is None else 0.0)
        self.actor = self.actor or self._start()
        try:
            async with asyncio.timeout(seconds):
                return await self._call(method, args)
        except faults.RayTaskError as error:  # the method raised: the worker is well
            raise error.cause from error
        except faults.RayError as error:
            self._revival = asyncio.create_task(self._revive())
            raise InfrastructureError(f"a {self._kind} worker was lost: {_sentence(error)}") from error
        except TimeoutError as error:
            self._end()
            raise InfrastructureError(f"a {self._kind} worker gave no answer in {seconds:g} s and was ended") from error
        except asyncio.CancelledError:
            self._end()
            raise

    def unsettled(self) -> asyncio.Future[Any] | None:
        return self._revival if self._revival is not None and not self._revival.done() else None

    async def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        handle = next((arg.handle for arg in args if isinstance(arg, CompileStage)), None)
        sent = [with_handle(arg, None) for arg in args]
        answer, kept = self.actor.call.options(num_returns=2).remote(method, handle, *sent)
        # Shielded: Ray's client cannot have a cancelled future. What ends the call is the end of its worker.
        return with_handle(await asyncio.shield(asyncio.ensure_future(answer)), kept)

    def _end(self) -> None:
        ray.kill(self.actor, no_restart=False)
        self._revival = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        """Until the actor that Ray started again answers; after the deadline the next call starts another."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                while True:
                    try:
                        await self.actor.ready.remote()
                        return
                    except faults.RayTaskError:  # it cannot make its host: the next call says why
                        return
                    except faults.RayError:
                        await asyncio.sleep(0.1)
        ray.kill(self.actor)
        self.actor = None


class RayFleet:
    """At most `workers` CPU workers and `gpus` GPU workers on the Ray that this process is connected to.

    `bench` and `supervisor` make the host of each kind. None for a number means all that the cluster has.
    """

    name = "ray"

    def __init__(
        self,
        bench: Recipe,
        supervisor: Recipe | None = None,
        *,
        workers: int | None = None,
        gpus: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """`seconds`: deadline of one call, instead of CPU_SECONDS and GPU_SECONDS."""
        have = ray.cluster_resources()  # type: ignore[no-untyped-call]
        workers = int(have.get("CPU", 0)) if workers is None else workers
        gpus = int(have.get("GPU", 0)) if gpus is None else gpus
        if workers < 1:
            raise ValueError("a fleet has at least one worker")
        self._cpu_slots = _slots(workers, bench, "CPU", seconds or CPU_SECONDS, cpus=1, gpus=0)
        self._gpu_slots = _slots(gpus, supervisor, "GPU", seconds or GPU_SECONDS, cpus=0, gpus=1) if supervisor else []
        self.gpus = len(self._gpu_slots)
        self._cpu, self._gpu = Pool(self._cpu_slots, "CPU"), Pool(self._gpu_slots, "GPU")

    def cpu(self) -> AbstractAsyncContextManager[Lease]:
        """A lease of one CPU worker, first come first served."""
        return self._cpu.lease()

    def gpu(self) -> AbstractAsyncContextManager[Lease]:
        """A lease of one GPU, first come first served. Raises InfrastructureError when there is none."""
        return self._gpu.lease()

    def close(self) -> None:
        """Ends all workers: in order where they answer within seconds, else by force."""
        self._cpu.close()
        self._gpu.close()
        actors = [slot.actor for slot in (*self._cpu_slots, *self._gpu_slots) if slot.actor is not None]
        if actors:
            ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=_CLOSE_SECONDS)
        for actor in actors:
            ray.kill(actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _slots(count: int, recipe: Recipe, kind: str, seconds: float, *, cpus: int, gpus: int) -> list[_ActorSlot]:
    actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=0)(Resident)
    return [_ActorSlot(lambda: actor.remote(recipe, gpus > 0), kind, seconds) for _ in range(count)]


def _sentence(error: faults.RayError) -> str:
    known = next((text for kind, text in _SENTENCES.items() if isinstance(error, kind)), "Ray gave no answer")
    return f"{known} ({type(error).__name__})"
