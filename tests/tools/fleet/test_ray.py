from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from agent.journal import read_events
from agent.search import Reason, search
from agent.session import Deps
from agent.testing import ScriptedModel, Wander, make_run
from tools.fleet.base import Fleet, Worker
from tools.fleet.host import Recipe
from tools.fleet.ray import RayFleet, ray_cluster
from tools.fleet.testing import PATIENCE, FleetConformance, alive, until
from verifier.errors import InfrastructureError

TOY = Recipe("tools.fleet.testing:Toy")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Logical GPUs: Ray counts them, nothing uses them."""
    with ray_cluster(cpus=4, gpus=3):
        yield


class TestRayFleet(FleetConformance):
    @classmethod
    def fleet(cls, workers: int, gpus: int) -> RayFleet:
        return RayFleet(TOY, TOY, workers=workers, gpus=gpus)

    async def test_a_worker_killed_at_its_work_costs_one_call(self, many: Fleet, tmp_path: Path) -> None:
        for lease in (many.cpu, many.gpu):
            async with lease() as worker, lease() as neighbour:
                pid, other = await worker.run("pid"), await neighbour.run("pid")
                notes = tmp_path / f"{pid}"
                call = asyncio.create_task(worker.run("note", notes, "x", 60.0))
                beside = asyncio.create_task(neighbour.run("note", tmp_path / f"{other}", "x", 2.0))
                await until(notes.exists)
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(InfrastructureError, match=r"worker was lost: its process ended \(Actor"):
                    await call
                await beside
            async with asyncio.timeout(PATIENCE), lease() as worker, lease() as neighbour:
                now = {await worker.run("pid"), await neighbour.run("pid")}
                assert other in now
                assert pid not in now

    async def test_a_worker_killed_while_idle_costs_at_most_one_call(self, one: Fleet) -> None:
        async with one.cpu() as worker:
            os.kill(pid := await worker.run("pid"), signal.SIGKILL)
        await until(lambda: not alive(pid))
        with suppress(InfrastructureError):
            async with one.cpu() as worker:
                await worker.run("pid")
        async with asyncio.timeout(PATIENCE), one.cpu() as worker:
            assert await worker.run("pid") != pid

    async def test_a_hung_call_is_ended_at_its_deadline_and_its_worker_replaced(self, tmp_path: Path) -> None:
        async def hang(lease: Callable[[], AbstractAsyncContextManager[Worker]]) -> None:
            async with lease() as worker:
                pid = await worker.run("pid")
                with pytest.raises(InfrastructureError, match="no answer in 4 s"):
                    await worker.run("note", tmp_path / "notes", "x", 600.0)
            async with asyncio.timeout(PATIENCE), lease() as worker:
                assert await worker.run("pid") != pid
            assert not alive(pid)

        with RayFleet(TOY, TOY, workers=1, gpus=1, seconds=4.0) as fleet:
            await asyncio.gather(hang(fleet.cpu), hang(fleet.gpu))

    async def test_a_handle_outlives_the_worker_that_made_it(self, many: Fleet) -> None:
        async with many.cpu() as worker, many.cpu() as other:
            stage = await worker.run("compile", 300_000)
            os.kill(pid := await worker.run("pid"), signal.SIGKILL)
            await until(lambda: not alive(pid))
            assert await other.run("test", stage) == 300_000

    async def test_the_search_process_never_reads_a_handle(self, one: Fleet) -> None:
        async with one.cpu() as worker:
            stage = await worker.run("compile", 300_000)
        assert isinstance(stage.handle, ray.ObjectRef)

    async def test_a_host_that_cannot_be_made_says_why_in_every_call(self) -> None:
        with RayFleet(Recipe("tools.fleet.testing:Broken"), workers=1) as fleet:
            for _ in range(2):
                async with fleet.cpu() as worker:
                    with pytest.raises(InfrastructureError, match="the sandbox did not start"):
                        await worker.run("pid")

    async def test_nothing_is_left_of_a_closed_fleet(self, tmp_path: Path) -> None:
        with RayFleet(TOY, TOY, workers=1, gpus=1) as fleet:
            async with fleet.cpu() as worker, fleet.gpu() as device:
                pids = [await worker.run("child"), await worker.run("pid"), await device.run("pid")]
                assert all(map(alive, pids))
        await until(lambda: not any(map(alive, pids)))


async def test_a_search_goes_on_when_its_worker_is_killed_and_pays_nothing_for_it(tmp_path: Path) -> None:
    def see(event: Mapping[str, Any]) -> None:
        if event["t"] == "outcome" and event["attempt"] == "a0002":
            (victim,) = _workers()
            os.kill(victim, signal.SIGKILL)

    calls = []
    for name, on_event in (("killed", see), ("whole", lambda event: None)):
        folder = make_run(tmp_path / name)
        with RayFleet(Recipe("agent.testing:ScriptedBench", {"seconds": 0.05}), workers=1) as fleet:
            summary = await search(folder, Deps(Wander(5), ScriptedModel(), fleet), on_event)
        faults = [e["error"] for e in read_events(folder.journal)[0] if e["t"] == "infra"]
        assert len(faults) == (name == "killed")
        assert all("its process ended" in text for text in faults)
        assert (summary.ended, summary.reason) == (5, Reason.STRATEGY)
        calls.append((summary.spent, summary.best and summary.best.score))
    assert calls[0] == calls[1]


def _workers() -> list[int]:
    """The actors of the Ray that this process started: children of its children."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    ours = [pid for pid, parent in parents.items() if parents.get(parent) == os.getpid()]
    return [pid for pid in ours if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Resident")]
