"""Over real HTTP on the loopback. In every test the server's count equals the attempts that were recorded as
sent."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tools.metering import Usage
from tools.models.base import Completion, HttpAttempt, Message, ModelError, ModelProfile, ModelRequest
from tools.models.openai_compatible import LARGEST_BODY, OpenAICompatible
from tools.models.replies import Reply
from tools.models.retry import RetryPolicy
from tools.models.server import LocalServer

FAST = RetryPolicy(attempts=3, first_wait=0.01, longest_wait=0.2)


@dataclass
class Talk:
    """One conversation with a scripted server."""

    server: LocalServer
    model: OpenAICompatible
    request: ModelRequest

    def complete(self, request: ModelRequest | None = None) -> Completion:
        before = self.server.count
        completion = asyncio.run(self.model.complete(request or self.request))
        assert sum(a.sent for a in completion.attempts) == self.server.count - before
        return completion

    def fail(self) -> ModelError:
        before = self.server.count
        with pytest.raises(ModelError) as caught:
            asyncio.run(self.model.complete(self.request))
        assert sum(a.sent for a in caught.value.attempts) == self.server.count - before
        return caught.value


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def talk(request: Any, serve: Any, profile: Any, ask: Any) -> Callable[..., Talk]:
    def start(*replies: Reply, retry: RetryPolicy = FAST, server: dict[str, Any] | None = None, **fields: Any) -> Talk:
        local = serve(replies, **(server or {}))
        given: ModelProfile = profile(local.url, **{"stream": request.param, **fields})
        return Talk(local, OpenAICompatible(given, retry=retry), ask(temperature=0.5, seed=7))

    return start


def statuses(attempts: tuple[HttpAttempt, ...]) -> list[int | None]:
    return [attempt.status for attempt in attempts]


def test_a_plain_answer(talk: Callable[..., Talk]) -> None:
    conversation = talk(Reply("hello ünï 🙂 " * 40))
    completion = conversation.complete()
    assert completion.text == "hello ünï 🙂 " * 40
    assert (completion.finish_reason, completion.model, statuses(completion.attempts)) == ("stop", "m", [200])
    assert completion.usage.output == -(-len(completion.text.encode()) // 4)
    assert not completion.usage.estimated
    body = conversation.server.requests[0].body
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 7, 1000)


@pytest.mark.parametrize("place", ["reasoning", "reasoning_content", "think", "template"])
def test_reasoning_in_each_of_its_places(talk: Callable[..., Talk], place: Any) -> None:
    completion = talk(Reply("the answer", "a long thought " * 9, place)).complete()
    assert (completion.text, completion.reasoning) == ("the answer", "a long thought " * 9)
    assert completion.usage.reasoning == -(-len("a long thought " * 9) // 4)


def test_an_answer_that_was_cut_by_its_length(talk: Callable[..., Talk]) -> None:
    completion = talk(Reply("<think>on and on", finish_reason="length")).complete()
    assert (completion.text, completion.reasoning, completion.finish_reason) == ("", "on and on", "length")


def test_missing_usage_is_estimated(talk: Callable[..., Talk]) -> None:
    completion = talk(Reply("x" * 400, usage=None)).complete()
    assert completion.usage.estimated
    assert completion.usage.output == 100


LIES = [
    {"prompt_tokens": -5, "completion_tokens": -5},
    {"prompt_tokens": 10**15, "completion_tokens": 10**15},
    {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
    {"prompt_tokens": 0, "completion_tokens": 0},
    {"prompt_tokens": "8", "completion_tokens": "100"},
    "a lot",
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_false_usage_is_estimated(talk: Callable[..., Talk], lie: object) -> None:
    completion = talk(Reply("x" * 400, usage=lie)).complete()
    assert completion.usage.estimated
    assert completion.usage.output == 100


def test_usage_beside_the_finish_reason_and_usage_that_is_repeated(talk: Callable[..., Talk]) -> None:
    said = {"prompt_tokens": 40, "completion_tokens": 100}
    beside = talk(Reply("x" * 400, usage=said, usage_with_text=True)).complete()
    twice = talk(Reply("x" * 400, usage=said, usages=(said, said))).complete()
    assert beside.usage == twice.usage == Usage(uncached=40, output=100)


def test_429_waits_as_told(talk: Callable[..., Talk]) -> None:
    started = time.monotonic()
    completion = talk(Reply(status=429, headers={"Retry-After": "0.15"}, error="slow down"), Reply()).complete()
    assert time.monotonic() - started >= 0.15
    assert statuses(completion.attempts) == [429, 200]
    assert [a.waited for a in completion.attempts] == [0.15, 0.0]
    assert "slow down" in completion.attempts[0].error


def test_retry_after_is_capped(talk: Callable[..., Talk]) -> None:
    completion = talk(Reply(status=429, headers={"Retry-After": "86400"}), Reply()).complete()
    assert completion.attempts[0].waited == FAST.longest_wait


@pytest.mark.parametrize("status", [408, 409, 500, 503])
def test_passing_errors_are_tried_again(talk: Callable[..., Talk], status: int) -> None:
    assert statuses(talk(Reply(status=status), Reply()).complete().attempts) == [status, 200]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_lasting_errors_are_not(talk: Callable[..., Talk], status: int) -> None:
    error = talk(Reply(status=status, error="go away")).fail()
    assert statuses(error.attempts) == [status]
    assert "go away" in str(error)


def test_attempts_are_bounded(talk: Callable[..., Talk]) -> None:
    error = talk(*[Reply(status=500)] * 9).fail()
    assert statuses(error.attempts) == [500, 500, 500]
    assert [a.waited > 0 for a in error.attempts] == [True, True, False]


def test_a_redirect_is_not_followed(talk: Callable[..., Talk], serve: Any) -> None:
    other = serve()
    error = talk(Reply(status=307, headers={"Location": f"{other.url}/chat/completions"})).fail()
    assert (statuses(error.attempts), other.count) == ([307], 0)


def test_a_hang_ends(talk: Callable[..., Talk]) -> None:
    completion = talk(Reply(fault="hang"), Reply(), timeout_seconds=1.5).complete()
    assert statuses(completion.attempts) == [None, 200]
    assert "1.5 s" in completion.attempts[0].error


def test_a_stream_that_stalls_ends(talk: Callable[..., Talk]) -> None:
    conversation = talk(Reply("x" * 100, fault="stall"), Reply(), stream=True, timeout_seconds=1.5)
    assert statuses(conversation.complete().attempts) == [200, 200]


@pytest.mark.parametrize("fault", ["cut", "drop"])
def test_a_broken_connection_is_tried_again(talk: Callable[..., Talk], fault: Any) -> None:
    completion = talk(Reply("x" * 100, fault=fault), Reply("whole")).complete()
    assert completion.text == "whole"
    assert statuses(completion.attempts) == [200 if fault == "cut" else None, 200]


def test_a_stream_that_ends_early_but_properly_is_no_answer(talk: Callable[..., Talk]) -> None:
    error = talk(*[Reply("x" * 100, fault="end")] * 3, stream=True).fail()
    assert statuses(error.attempts) == [200] * 3
    assert "cut" in str(error)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"<html>busy</html>",
        b'{"choices": []}',
        b'{"choices": null}',
        b"[" * 50_000,
        b'{"error": {"message": "overloaded"}}',
        b'{"choices": [{"message": {"content": "x"}}], "usage": {"completion_tokens": ' + b"9" * 9000 + b"}}",
    ],
    ids=lambda raw: raw[:20],
)
def test_a_body_that_is_no_answer_is_tried_again(talk: Callable[..., Talk], raw: bytes) -> None:
    assert statuses(talk(Reply(raw=raw), Reply()).complete().attempts) == [200, 200]


def test_events_that_are_no_answer_are_tried_again(talk: Callable[..., Talk]) -> None:
    for raw in (b"data: {\n\n", b"data: []\n\n", b'data: {"error": "overloaded"}\n\n', b"\xff\xfe\n\n"):
        completion = talk(Reply(raw=raw, content_type="text/event-stream"), Reply()).complete()
        assert statuses(completion.attempts) == [200, 200]


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_a_flood_is_cut_off(talk: Callable[..., Talk], content_type: str) -> None:
    flood = Reply(raw=b"data: " + b"x" * (LARGEST_BODY + 1), content_type=content_type)
    error = talk(flood, retry=RetryPolicy(attempts=1)).fail()
    assert "longer than 64 MiB" in str(error)


def test_a_server_that_ignores_stream_is_understood(talk: Callable[..., Talk]) -> None:
    whole = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}
    assert talk(Reply(raw=json.dumps(whole).encode())).complete().text == "whole"


def test_a_refused_parameter_is_learned_once(talk: Callable[..., Talk]) -> None:
    refuses = {"temperature": "'temperature' is not supported with this model."}
    conversation = talk(server={"refuses": refuses})
    first = conversation.complete()
    assert statuses(first.attempts) == [400, 200]
    assert "learned to leave out temperature" in first.attempts[0].error
    assert first.attempts[0].waited == 0
    assert statuses(conversation.complete().attempts) == [200]
    assert "temperature" not in conversation.server.requests[-1].body


def test_max_tokens_is_renamed_and_two_refusals_are_learned(talk: Callable[..., Talk]) -> None:
    refuses = {
        "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "seed": "Unsupported parameter: 'seed'.",
    }
    conversation = talk(server={"refuses": refuses})
    assert statuses(conversation.complete().attempts) == [400, 400, 200]
    body = conversation.server.requests[-1].body
    assert body["max_completion_tokens"] == 1000
    assert not {"max_tokens", "seed"} & body.keys()


def test_a_server_that_refuses_both_names_ends_and_teaches_nothing(talk: Callable[..., Talk]) -> None:
    refuses = {name: f"{name} is not supported" for name in ("max_tokens", "max_completion_tokens")}
    conversation = talk(server={"refuses": refuses}, retry=RetryPolicy(attempts=9, first_wait=0.01))
    assert statuses(conversation.fail().attempts) == [400, 400]
    assert conversation.model.quirks.max_tokens_field == "max_tokens"


def test_stream_options_may_be_refused(talk: Callable[..., Talk]) -> None:
    conversation = talk(Reply("x" * 40), stream=True, server={"refuses": {"stream_options": "stream_options: unknown"}})
    completion = conversation.complete()
    assert (statuses(completion.attempts), completion.usage.estimated) == ([400, 200], True)


def test_no_server_is_no_request(talk: Callable[..., Talk]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = talk(base_url=f"http://127.0.0.1:{free.getsockname()[1]}/v1").fail()
    assert [(a.status, a.sent) for a in error.attempts] == [(None, False)] * 3
    assert error.next_step


def test_many_at_once_on_two_loops(talk: Callable[..., Talk], ask: Any) -> None:
    conversation = talk(*[Reply(status=500)] * 4, retry=RetryPolicy(attempts=8, first_wait=0.01))

    async def burst() -> list[Completion]:
        return list(await asyncio.gather(*(conversation.model.complete(ask(f"a{n}/1")) for n in range(16))))

    completions = asyncio.run(burst()) + asyncio.run(burst())
    assert sum(len(c.attempts) for c in completions) == conversation.server.count == 36


def test_a_cancelled_call_closes_its_connection(talk: Callable[..., Talk]) -> None:
    conversation = talk(Reply(fault="hang"))

    async def cancel() -> None:
        task = asyncio.create_task(conversation.model.complete(conversation.request))
        await asyncio.to_thread(conversation.server.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert conversation.server.count == 1


def test_only_our_headers_go_out(talk: Callable[..., Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {
        "API_KEY": "sk-foreign",
        "ORG_ID": "org-foreign",
        "PROJECT_ID": "p-foreign",
        "ADMIN_KEY": "ad-foreign",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(f"OPENAI_{name}", value)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Foreign: x-foreign\nAuthorization: Bearer y-foreign")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    conversation = talk(Reply())
    conversation.complete()
    headers = conversation.server.requests[0].headers
    assert "foreign" not in str(headers)
    assert "authorization" not in headers
    assert [name for name in headers if name.startswith(("x-", "openai"))] == ["x-stainless-raw-response"]
    assert os.environ["OPENAI_API_KEY"] == "sk-foreign"


async def test_a_server_that_nobody_runs_is_given_up_soon() -> None:
    model = OpenAICompatible(
        ModelProfile(name="gone", model="m", base_url="http://127.0.0.1:9/v1"), retry=RetryPolicy(first_wait=0.01)
    )
    with pytest.raises(ModelError, match="3 HTTP attempts") as raised:
        await model.complete(ModelRequest(id="a0001/1", messages=(Message(role="user", content="x"),)))
    assert [attempt.sent for attempt in raised.value.attempts] == [False, False, False]
