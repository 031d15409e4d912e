"""The conformance suite of fleets, and the host that it puts on their workers. Needs pytest.

A fleet joins with one class in a test file:

    class TestMine(FleetConformance):
        @classmethod
        def fleet(cls, workers, gpus): ...  # its hosts are `Toy`
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tools.fleet.base import Fleet
from verifier.bench import CompileStage
from verifier.errors import InfrastructureError, ProblemError, SandboxError
from verifier.verdict import CompileReport

Span = tuple[float, float]
PATIENCE = 60.0
"""Seconds in which a worker that was lost or ended must serve again."""


class Toy:
    """A host that does nothing useful. Workers may be processes: it speaks through results and files."""

    def __init__(self, device: str = "none") -> None:
        self._device = device
        self._child: subprocess.Popen[bytes] | None = None

    def divide(self, a: int, b: int) -> float:
        return a / b

    def device(self) -> str:
        return self._device

    def pid(self) -> int:
        return os.getpid()

    def child(self) -> int:
        """Starts a process that ends with this host, and gives its id."""
        self._child = subprocess.Popen(["sleep", "600"])
        return self._child.pid

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def complain(self) -> None:
        raise ProblemError("no such layer", file="p.py", line=3, next_step="mend it")

    def note(self, path: Path, text: str, seconds: float = 0.0) -> Span:
        """Writes a line, sleeps, and gives when that began and ended, on the machine's monotonic clock."""
        begin = time.monotonic()
        with path.open("a") as file:
            file.write(f"{text}\n")
        time.sleep(seconds)
        return begin, time.monotonic()

    def compile(self, size: int) -> CompileStage:
        """A stage whose handle has `size` bytes."""
        report = CompileReport(target="none", triton="0", seconds=0.0)
        return CompileStage(report=report, handle=b"k" * size)

    def test(self, stage: CompileStage) -> int:
        return len(stage.handle)

    def size(self, handle: bytes) -> int:
        return len(handle)


class Broken:
    """A host that cannot be made."""

    def __init__(self) -> None:
        raise SandboxError("the sandbox did not start")


@pytest.mark.asyncio(loop_scope="class")
class FleetConformance:
    """What every fleet does. All tests of a class share two fleets: workers may take seconds to start."""

    @classmethod
    def fleet(cls, workers: int, gpus: int) -> Fleet:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def one(cls) -> Iterator[Fleet]:
        """A single CPU worker."""
        with closing(cls.fleet(1, 0)) as fleet:
            yield fleet

    @pytest.fixture(scope="class")
    @classmethod
    def many(cls) -> Iterator[Fleet]:
        """Two workers of each kind."""
        with closing(cls.fleet(2, 2)) as fleet:
            yield fleet

    async def test_a_call_leaves_the_event_loop_free(self, one: Fleet, tmp_path: Path) -> None:
        async with one.cpu() as worker:
            assert await worker.run("divide", 6, 2) == 3
            call = asyncio.create_task(worker.run("note", tmp_path / "notes", "slow", 1.0))
            await until((tmp_path / "notes").exists)
            assert not call.done()
            await call

    async def test_what_the_host_raises_comes_through_and_leaves_the_worker_well(self, one: Fleet) -> None:
        async with one.cpu() as worker:
            with pytest.raises(ZeroDivisionError):
                await worker.run("divide", 1, 0)
            with pytest.raises(ProblemError) as caught:
                await worker.run("complain")
            assert (caught.value.line, caught.value.next_step) == (3, "mend it")
            assert str(caught.value) == "p.py:3: no such layer"
        async with asyncio.timeout(PATIENCE), one.cpu() as worker:
            assert await worker.run("divide", 4, 2) == 2

    async def test_leases_are_first_come_first_served(self, one: Fleet, tmp_path: Path) -> None:
        spans = await asyncio.gather(*(_noted(one, tmp_path / "notes", str(n), 0.01) for n in range(6)))
        assert (tmp_path / "notes").read_text().split() == [str(n) for n in range(6)]
        assert _at_once(spans) == 1

    async def test_never_more_calls_at_once_than_workers(self, many: Fleet, tmp_path: Path) -> None:
        async with many.cpu() as first, many.cpu() as second:  # both have started now
            await asyncio.gather(first.run("pid"), second.run("pid"))
        spans = await asyncio.gather(*(_noted(many, tmp_path / "notes", "x", 0.1) for _ in range(8)))
        assert _at_once(spans) == 2

    async def test_a_stage_goes_on_where_it_was_not_compiled(self, many: Fleet) -> None:
        for size in (10, 300_000):
            async with many.cpu() as first, many.cpu() as second, many.gpu() as device:
                stage = await first.run("compile", size)
                assert await second.run("test", stage) == size
                assert await first.run("test", stage) == size
                assert await device.run("size", stage.handle) == size

    async def test_a_gpu_is_one_attempts_alone_and_its_seconds_are_counted(self, many: Fleet, tmp_path: Path) -> None:
        async def attempt() -> tuple[float, Span]:
            async with many.gpu() as device:
                span = await device.run("note", tmp_path / "notes", "x", 0.1)
            held = device.held
            await asyncio.sleep(0.01)
            assert device.held == held
            return held, span

        async with many.gpu() as first, many.gpu() as second:
            devices = await asyncio.gather(first.run("device"), second.run("device"))
        assert len({*devices, "none"}) == 3
        ended = await asyncio.gather(*(attempt() for _ in range(6)))
        assert all(held >= end - begin for held, (begin, end) in ended)
        assert _at_once([span for _, span in ended]) == 2

    async def test_a_fleet_without_gpus_says_so(self, one: Fleet) -> None:
        with pytest.raises(InfrastructureError, match="no GPU"):
            async with one.gpu():
                pytest.fail("there is none")

    async def test_a_cancelled_attempt_frees_its_worker_when_nothing_runs_on_it(
        self, one: Fleet, tmp_path: Path
    ) -> None:
        task = asyncio.create_task(_noted(one, tmp_path / "notes", "started", 1.0))
        await until((tmp_path / "notes").exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), one.cpu():
                pytest.fail("the worker still serves the cancelled attempt")
        async with asyncio.timeout(PATIENCE), one.cpu() as worker:
            assert await worker.run("divide", 2, 2) == 1

    async def test_waiting_for_a_lease_can_be_cancelled(self, one: Fleet) -> None:
        async with one.cpu():
            waiter = asyncio.create_task(one.cpu().__aenter__())
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        async with asyncio.timeout(PATIENCE), one.cpu() as worker:
            assert await worker.run("divide", 2, 2) == 1

    async def test_a_lease_serves_one_call_at_a_time_and_none_after_its_end(self, one: Fleet, tmp_path: Path) -> None:
        async with one.cpu() as worker:
            call = asyncio.create_task(worker.run("note", tmp_path / "notes", "x", 0.1))
            await asyncio.sleep(0)
            with pytest.raises(InfrastructureError, match="one call at a time"):
                await worker.run("pid")
            await call
        with pytest.raises(InfrastructureError, match="after its end"):
            await worker.run("pid")

    async def test_a_closed_fleet_gives_no_lease(self) -> None:
        fleet = self.fleet(1, 0)
        fleet.close()
        with pytest.raises(InfrastructureError, match="closed"):
            async with fleet.cpu():
                pytest.fail("it is closed")

    async def test_all_who_wait_hear_that_it_is_closed(self) -> None:
        fleet = self.fleet(1, 0)

        async def wait() -> None:
            async with fleet.cpu():
                pytest.fail("it is closed")

        async with fleet.cpu():
            waiting = [asyncio.create_task(wait()) for _ in range(3)]
            await asyncio.sleep(0)
            fleet.close()
        async with asyncio.timeout(PATIENCE):
            found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(fault) for fault in found] == ["the fleet is closed"] * 3

    async def test_a_fleet_needs_a_worker(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            self.fleet(0, 0)


async def until(holds: Callable[[], object]) -> None:
    """Looks at files or processes until it holds. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110  nothing tells
            await asyncio.sleep(0.01)


async def _noted(fleet: Fleet, path: Path, text: str, seconds: float) -> Span:
    async with fleet.cpu() as worker:
        span: Span = await worker.run("note", path, text, seconds)
        return span


def _at_once(spans: Sequence[Span]) -> int:
    return max(sum(a <= begin < b for a, b in spans) for begin, _ in spans)


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
