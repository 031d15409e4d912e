from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tools.fleet.local import LocalFleet
from verifier.errors import InfrastructureError


async def test_a_lease_runs_a_blocking_function_on_another_thread() -> None:
    with LocalFleet(1) as fleet:
        async with fleet.cpu() as worker:
            assert await worker.run(threading.get_ident) != threading.get_ident()
            assert await worker.run(divmod, 7, 2) == (3, 1)


async def test_what_the_function_raises_comes_through_and_frees_the_worker() -> None:
    with LocalFleet(1) as fleet:
        with pytest.raises(ZeroDivisionError):
            async with fleet.cpu() as worker:
                await worker.run(divmod, 1, 0)
        async with asyncio.timeout(1), fleet.cpu() as worker:
            assert await worker.run(len, "abc") == 3


async def test_never_more_functions_at_once_than_workers() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    async def attempt(fleet: LocalFleet) -> None:
        async with fleet.cpu() as worker:
            await worker.run(work)

    with LocalFleet(2) as fleet:
        await asyncio.gather(*(attempt(fleet) for _ in range(12)))
    assert most == 2


async def test_a_cancelled_lease_returns_only_when_its_function_has() -> None:
    started, release = threading.Event(), threading.Event()

    def hang() -> None:
        started.set()
        release.wait(5)

    async def attempt(fleet: LocalFleet) -> None:
        async with fleet.cpu() as worker:
            await worker.run(hang)

    with LocalFleet(1) as fleet:
        task = asyncio.create_task(attempt(fleet))
        await asyncio.to_thread(started.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), fleet.cpu():
                pytest.fail("the worker still runs the cancelled attempt's function")
        release.set()
        async with asyncio.timeout(2), fleet.cpu() as worker:
            assert await worker.run(len, "ab") == 2


async def test_waiting_for_a_lease_can_be_cancelled() -> None:
    with LocalFleet(1) as fleet:
        async with fleet.cpu():
            waiter = asyncio.create_task(fleet.cpu().__aenter__())
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        async with asyncio.timeout(1), fleet.cpu() as worker:
            assert await worker.run(len, "a") == 1


async def test_leases_are_first_come_first_served() -> None:
    order: list[int] = []

    async def attempt(fleet: LocalFleet, number: int) -> None:
        async with fleet.cpu() as worker:
            await worker.run(order.append, number)

    with LocalFleet(1) as fleet:
        await asyncio.gather(*(attempt(fleet, n) for n in range(6)))
    assert order == list(range(6))


async def test_a_closed_fleet_is_an_infrastructure_error() -> None:
    fleet = LocalFleet(1)
    fleet.close()
    with pytest.raises(InfrastructureError, match="closed"):
        async with fleet.cpu() as worker:
            await worker.run(len, "a")


def test_a_fleet_needs_a_worker() -> None:
    with pytest.raises(ValueError, match="at least one"):
        LocalFleet(0)
