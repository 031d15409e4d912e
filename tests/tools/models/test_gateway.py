from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.metering import BudgetExhausted, Usage
from tools.models.base import (
    AnswerPending,
    Completion,
    HttpAttempt,
    ModelError,
    ModelProfile,
    ModelRequest,
    Prices,
)
from tools.models.gateway import Gateway
from tools.models.store import CompletionStore, file_name
from verifier.errors import StorageError

USAGE = Usage(uncached=20, cached=10, output=100)


class Scripted:
    """A model that answers, raises or waits as told, and counts."""

    def __init__(self, *script: Exception | str, usage: Usage = USAGE, **profile: object) -> None:
        fields = {"name": "scripted", "prices": Prices(uncached=1, cached=0.1, output=10)}
        self.profile = ModelProfile.model_validate({**fields, **profile})
        self.script = list(script)
        self.usage = usage
        self.calls = 0
        self.gate: asyncio.Event | None = None

    async def complete(self, request: ModelRequest) -> Completion:
        self.calls += 1
        step = self.script.pop(0)
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(step, Exception):
            raise step
        return Completion(request=request.id, text=step, usage=self.usage, model="m")


class Waits(Scripted):
    """Waits for every answer."""

    async def complete(self, request: ModelRequest) -> Completion:
        self.calls += 1
        raise AnswerPending(request)


Ask = Callable[..., ModelRequest]


def test_the_charge_is_what_was_used(tmp_path: Path, meter: Any, ask: Ask) -> None:
    completion = asyncio.run(Gateway(Scripted("hi"), meter, CompletionStore(tmp_path)).complete(ask()))
    (charge,) = meter.settled.values()
    assert (completion.text, charge.calls, charge.usage, charge.wall_seconds) == ("hi", 1, USAGE, 0)
    assert charge.dollars == pytest.approx((20 * 1 + 10 * 0.1 + 100 * 10) / 1e6)
    assert (meter.held, meter.refunds) == ({}, {})


async def test_a_stored_answer_costs_nothing(tmp_path: Path, meter: Any, new_meter: Any, ask: Ask) -> None:
    first = await Gateway(Scripted("hi"), meter, CompletionStore(tmp_path)).complete(ask())
    model, later = Scripted(), new_meter(calls=0)
    assert await Gateway(model, later, CompletionStore(tmp_path)).complete(ask()) == first
    assert (model.calls, later.settled) == (0, {})


async def test_nothing_goes_out_that_the_budget_cannot_hold(tmp_path: Path, new_meter: Any, ask: Ask) -> None:
    model = Scripted("hi")
    with pytest.raises(BudgetExhausted):
        await Gateway(model, new_meter(calls=0), CompletionStore(tmp_path)).complete(ask())
    assert model.calls == 0
    assert not (tmp_path / "completions").exists()


async def test_the_answer_is_on_disk_before_it_is_settled(tmp_path: Path, meter: Any, ask: Ask) -> None:
    seen = []

    class Looks(type(meter)):  # type: ignore[misc]
        def settle(self, key: str, actual: Any) -> None:
            seen.append(CompletionStore(tmp_path).get(ask()))
            super().settle(key, actual)

    await Gateway(Scripted("hi"), Looks(), CompletionStore(tmp_path)).complete(ask())
    assert seen[0] is not None
    assert seen[0].completion.text == "hi"


async def test_the_mark_is_on_disk_before_the_request_goes_out(tmp_path: Path, meter: Any, ask: Ask) -> None:
    seen = []

    class Looks(Scripted):
        async def complete(self, request: ModelRequest) -> Completion:
            seen.extend(CompletionStore(tmp_path).sent_unanswered())
            return await super().complete(request)

    await Gateway(Looks("hi"), meter, CompletionStore(tmp_path)).complete(ask())
    assert [(d.request, d.bound.calls, d.bound.usage.output) for d in seen] == [("a0001/1", 1, 1000)]
    assert CompletionStore(tmp_path).sent_unanswered() == ()


async def test_a_failure_is_refunded_recorded_and_can_be_tried_again(tmp_path: Path, meter: Any, ask: Ask) -> None:
    attempts = (HttpAttempt(status=500, error="bad day", seconds=0.1),)
    store = CompletionStore(tmp_path)
    gateway = Gateway(Scripted(ModelError("no answer", attempts=attempts), "hi"), meter, store)
    with pytest.raises(ModelError):
        await gateway.complete(ask())
    assert (meter.held, meter.settled, list(meter.refunds.values())) == ({}, {}, ["no answer"])
    assert store.dispatches()[0].attempts == attempts
    assert (await gateway.complete(ask())).text == "hi"
    assert [d.state for d in store.dispatches()] == ["answered", "failed"]
    assert len({d.key for d in store.dispatches()}) == 2


async def test_more_than_was_reserved_is_charged_as_reported(tmp_path: Path, meter: Any, ask: Ask) -> None:
    await Gateway(Scripted("hi", usage=Usage(output=90_000)), meter, CompletionStore(tmp_path)).complete(ask())
    assert len(meter.excess) == 1
    assert next(iter(meter.settled.values())).usage.output == 90_000


async def test_what_waits_stays_reserved_once(tmp_path: Path, new_meter: Any, ask: Ask) -> None:
    meter, store = new_meter(calls=1), CompletionStore(tmp_path)
    gateway = Gateway(Waits(remote=False), meter, store)
    for _ in range(3):
        with pytest.raises(AnswerPending):
            await gateway.complete(ask())
    with pytest.raises(BudgetExhausted):
        await gateway.complete(ask("a0002/1"))
    assert (len(meter.held), meter.refunds, store.sent_unanswered()) == (1, {}, ())


async def test_an_answer_from_outside_settles_what_was_held(tmp_path: Path, new_meter: Any, ask: Ask) -> None:
    meter, store, model = new_meter(calls=1), CompletionStore(tmp_path), Waits(remote=False)
    gateway = Gateway(model, meter, store)
    with pytest.raises(AnswerPending):
        await gateway.complete(ask())
    answer = Completion(request=ask().id, text="by hand", usage=USAGE, model="m")
    store.put_outside(ask(), answer)
    for _ in range(2):
        assert await gateway.complete(ask()) == answer
    assert (meter.held, [c.usage for c in meter.settled.values()], model.calls) == ({}, [USAGE], 1)


async def test_after_a_resume_what_waited_is_reserved_under_its_key(tmp_path: Path, new_meter: Any, ask: Ask) -> None:
    keys = []
    for _ in range(2):
        meter = new_meter()
        with pytest.raises(AnswerPending):
            await Gateway(Waits(remote=False), meter, CompletionStore(tmp_path)).complete(ask())
        keys.append(tuple(meter.held))
    assert keys[0] == keys[1]
    store = CompletionStore(tmp_path)
    store.put_outside(ask(), Completion(request=ask().id, text="by hand", usage=USAGE, model="m"))
    for expected in (keys[0], ()):
        meter = new_meter()
        await Gateway(Waits(remote=False), meter, CompletionStore(tmp_path)).complete(ask())
        assert tuple(meter.settled) == expected
    assert [(d.key, d.state) for d in store.dispatches()] == [(*keys[0], "answered")]


async def test_a_cancelled_call_stays_reserved_and_counts_as_sent(tmp_path: Path, meter: Any, ask: Ask) -> None:
    model, store = Scripted("hi", "hi"), CompletionStore(tmp_path)
    model.gate = asyncio.Event()
    task = asyncio.create_task(Gateway(model, meter, store).complete(ask()))
    while not model.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (lost,) = store.sent_unanswered()
    assert meter.held == {lost.key: lost.bound}
    model.gate.set()
    await Gateway(model, meter, store).complete(ask())
    assert lost.key not in meter.settled


async def test_a_model_that_sends_nothing_leaves_no_mark(tmp_path: Path, meter: Any, ask: Ask) -> None:
    model = Scripted(RuntimeError("a bug"), is_language_model=False)
    with pytest.raises(RuntimeError):
        await Gateway(model, meter, CompletionStore(tmp_path)).complete(ask())
    assert CompletionStore(tmp_path).dispatches() == ()


async def test_two_calls_for_one_request_share_the_answer(tmp_path: Path, meter: Any, ask: Ask) -> None:
    model = Scripted("hi")
    gateway = Gateway(model, meter, CompletionStore(tmp_path))
    one, other = await asyncio.gather(gateway.complete(ask()), gateway.complete(ask()))
    assert (one, model.calls, len(meter.settled)) == (other, 1, 1)


async def test_different_requests_overlap(tmp_path: Path, meter: Any, ask: Ask) -> None:
    model = Scripted(*["hi"] * 8)
    model.gate = asyncio.Event()
    gateway = Gateway(model, meter, CompletionStore(tmp_path))
    tasks = [asyncio.create_task(gateway.complete(ask(f"a{n}/1"))) for n in range(8)]
    while model.calls < 8:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert len(meter.held) == 8
    model.gate.set()
    await asyncio.gather(*tasks)
    assert (meter.held, len(meter.settled)) == ({}, 8)


async def test_a_disk_that_fails_before_the_request_costs_nothing(tmp_path: Path, meter: Any, ask: Ask) -> None:
    (tmp_path / "completions" / f".{file_name(ask())}.sent.json.{os.getpid()}.tmp").mkdir(parents=True)
    model = Scripted("hi")
    with pytest.raises(StorageError):
        await Gateway(model, meter, CompletionStore(tmp_path)).complete(ask())
    assert (model.calls, meter.held, meter.settled, len(meter.refunds)) == (0, {}, {}, 1)


async def test_a_disk_that_fails_after_the_answer_is_paid_for(tmp_path: Path, meter: Any, ask: Ask) -> None:
    class Breaks(Scripted):
        async def complete(self, request: ModelRequest) -> Completion:
            folder = tmp_path / "run" / "completions"
            folder.rename(tmp_path / "gone")
            folder.write_text("in the way")
            return await super().complete(request)

    with pytest.raises(StorageError):
        await Gateway(Breaks("hi"), meter, CompletionStore(tmp_path / "run")).complete(ask())
    assert (meter.held, len(meter.settled)) == ({}, 1)
