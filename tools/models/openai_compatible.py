"""Any server that speaks OpenAI's chat completions, streamed or not; what differs is in the profile.

Where it departs from the client library's habits, on purpose:

- `max_retries=0` and one loop here, so that every request is recorded: `Completion.attempts` and
  `ModelError.attempts` with `sent` are exactly the requests that the server counted. Redirects are not
  followed for the same reason.
- The library is the transport only; bodies and events are read by `answer.py`, which trusts no type.
- Of the library's headers only those in HEADERS go out, and only this profile's key: the user's
  OPENAI_API_KEY, organisation and custom headers are for another server. A server on this machine is never
  reached through a proxy.
- `timeout_seconds` bounds one whole HTTP attempt, not the pause between two bytes.

The key is read from the environment for each call. It is in no attribute, message, record or log; a server
that echoes it is redacted (in response headers it is not: httpcore2 logs those at DEBUG). One client lives
for one call (0.3 ms to make), so there is nothing to close.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from tools.models.answer import Answer, BadAnswer, StreamReader, error_text, parse_json, read_body
from tools.models.base import Completion, HttpAttempt, ModelError, ModelProfile, ModelRequest
from tools.models.body import Quirks, learn, request_body
from tools.models.retry import RetryPolicy, is_retried, read_retry_after
from tools.models.usage import Seen, read_usage, utf8_bytes
from verifier.errors import UsageError

RAW_HEADER = "x-stainless-raw-response"
"""The library reads it back from the request to know that the caller wants the bytes."""
HEADERS = frozenset({"host", "accept", "connection", "content-type", "content-length", "user-agent", RAW_HEADER})
LARGEST_BODY = 64 << 20
"""Bytes of a response; more is no completion."""
LONGEST_ERROR = 300
CONNECT_SECONDS = 10.0
SHORTEST_SECRET = 6
"""Characters; a shorter key ("none", "EMPTY") is a placeholder and is not redacted."""
NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
)


def read_key(profile: ModelProfile) -> str:
    """The key from the profile's variable, "" where it names none. Raises UsageError for a missing one."""
    if not profile.api_key_env:
        return ""
    key = os.environ.get(profile.api_key_env, "").strip()
    if not key:
        raise UsageError(
            f"the model {profile.name} needs a key in the environment variable {profile.api_key_env}",
            next_step=f"export {profile.api_key_env}=..., or use --model sampler, which needs none.",
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(f"the environment variable {profile.api_key_env} holds characters that no key has")
    return key


@dataclass(frozen=True, slots=True)
class _Response:
    """What one HTTP request came to: an answer, or why not and whether to ask again."""

    status: int | None
    error: str = ""
    answer: Answer | None = None
    retried: bool = False
    retry_after: float | None = None
    refusal: object = field(default=None, repr=False)
    """Body of a 400 or 422, which may teach a quirk."""
    sent: bool = True


class OpenAICompatible:
    """A `Model` over HTTP. `quirks` grows as the server refuses parameters; the profile stays as it is."""

    def __init__(self, profile: ModelProfile, *, retry: RetryPolicy | None = None) -> None:
        read_key(profile)
        self.profile = profile
        self.retry = retry or RetryPolicy()
        self.quirks = Quirks.of(profile)

    async def complete(self, request: ModelRequest) -> Completion:
        """One answer. Raises ModelError when the attempts end without one, UsageError without a key."""
        key = _Secret(read_key(self.profile))
        started = time.monotonic()
        async with _client(self.profile, key) as client:
            answer, attempts = await self._loop(client, request, key)
        seen = Seen(utf8_bytes(*(m.content for m in request.messages)), utf8_bytes(answer.text, answer.reasoning))
        return Completion(
            request=request.id,
            text=answer.text,
            reasoning=answer.reasoning,
            usage=read_usage(answer.usage, seen, doubtful=answer.doubtful_usage),
            finish_reason=answer.finish_reason,
            model=answer.model or self.profile.model or self.profile.name,
            seconds=time.monotonic() - started,
            attempts=attempts,
        )

    async def _loop(
        self, client: openai.AsyncOpenAI, request: ModelRequest, key: _Secret
    ) -> tuple[Answer, tuple[HttpAttempt, ...]]:
        quirks, tried, attempts, unreached = self.quirks, {self.quirks}, list[HttpAttempt](), 0
        for number in range(self.retry.attempts):
            started = time.monotonic()
            body = request_body(self.profile, request, quirks, stream=self.profile.stream)
            response = await _send(client, body, self.profile.timeout_seconds, key)
            lesson = learn(quirks, body, response.refusal) if response.refusal is not None else None
            again = response.retried
            if lesson is not None and lesson[0] not in tried:
                quirks, again = lesson[0], True
                tried.add(quirks)
            unreached = 0 if response.sent else unreached + 1
            again = again and number + 1 < self.retry.attempts and unreached < self.retry.unreached
            wait = self.retry.wait(request.digest, number, response.retry_after) if again and response.retried else 0.0
            attempts.append(
                HttpAttempt(
                    status=response.status,
                    error=f"{response.error} ({lesson[1]})" if lesson and again else response.error,
                    seconds=time.monotonic() - started,
                    waited=wait,
                    sent=response.sent,
                )
            )
            if response.answer is not None:
                self.quirks = self.quirks.merged(quirks)
                return response.answer, tuple(attempts)
            if not again:
                break
            await asyncio.sleep(wait)
        raise _model_error(self.profile, attempts)


def _model_error(profile: ModelProfile, attempts: list[HttpAttempt]) -> ModelError:
    last = attempts[-1]
    step = "Check that the server runs and that base_url is right." if not last.sent else ""
    if last.status in (401, 403) and profile.api_key_env:
        step = f"Check the key in {profile.api_key_env}."
    return ModelError(
        f"the model {profile.name} gave no answer in {len(attempts)} HTTP attempts; the last: {last.error}",
        attempts=tuple(attempts),
        next_step=step,
    )


class _Secret:
    """A key that does not show in a repr, a traceback with locals or a log line."""

    __slots__ = ("reveal",)

    def __init__(self, key: str) -> None:
        self.reveal: Callable[[], str] = lambda: key

    def __repr__(self) -> str:
        return "_Secret(...)"

    def redact(self, text: str) -> str:
        key = self.reveal()
        return text.replace(key, "[key]") if len(key) >= SHORTEST_SECRET else text


@cache
def _tls() -> ssl.SSLContext:
    """Made once in a process (27 ms)."""
    return httpx2.create_ssl_context()


def _client(profile: ModelProfile, key: _Secret) -> openai.AsyncOpenAI:
    """A client for one call, that sends our headers and nothing of the environment's."""

    async def keep_ours(request: httpx2.Request) -> None:
        for name in [n for n in request.headers if n.lower() not in HEADERS]:
            del request.headers[name]
        request.headers["accept-encoding"] = "identity"
        if key.reveal():
            request.headers["authorization"] = f"Bearer {key.reveal()}"

    local = urlsplit(profile.base_url).hostname in ("127.0.0.1", "localhost", "::1")
    http = httpx2.AsyncClient(
        verify=_tls(), follow_redirects=False, trust_env=not local, event_hooks={"request": [keep_ours]}
    )
    return openai.AsyncOpenAI(
        api_key=key.reveal() or "none", base_url=profile.base_url, max_retries=0, http_client=http
    )


async def _send(client: openai.AsyncOpenAI, body: dict[str, Any], seconds: float, key: _Secret) -> _Response:
    """One HTTP request, as data whatever happens. The library's errors never leave: they hold headers."""
    status: int | None = None
    try:
        async with asyncio.timeout(seconds):
            rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
            async with client.chat.completions.with_streaming_response.create(
                model=body["model"],
                messages=body["messages"],
                extra_body=rest,
                timeout=httpx2.Timeout(None, connect=min(CONNECT_SECONDS, seconds / 2)),
            ) as response:
                status = response.status_code
                return _Response(status, answer=_redacted(await _read(response), key))
    except BadAnswer as error:
        return _Response(status, _short(str(error), key), retried=True)
    except openai.APIStatusError as error:
        return _refused(error, key)
    except openai.APIConnectionError as error:
        sent = not isinstance(error.__cause__, NOT_SENT)
        return _Response(None, _short(_reason(error.__cause__ or error), key), retried=True, sent=sent)
    except httpx2.HTTPError as error:
        return _Response(status, _short(f"the answer broke off: {_reason(error)}", key), retried=True)
    except TimeoutError:
        return _Response(status, f"no whole answer within {seconds:g} s", retried=True)


async def _read(response: Any) -> Answer:
    """The response's body, as an event stream if it says so, whatever was asked for."""
    streamed = "text/event-stream" in response.headers.get("content-type", "")
    reader, data, size = StreamReader(), bytearray(), 0
    async for piece in response.iter_bytes():
        size += len(piece)
        if size > LARGEST_BODY:
            raise BadAnswer(f"the answer is longer than {LARGEST_BODY >> 20} MiB")
        if streamed:
            reader.feed(piece)
        else:
            data += piece
    return reader.finish() if streamed else read_body(parse_json(bytes(data)))


def _refused(error: openai.APIStatusError, key: _Secret) -> _Response:
    body = error.body if error.body is not None else error.response.text
    status = error.status_code
    return _Response(
        status,
        _short(f"{status}: {error_text(body)}", key),
        retried=is_retried(status, body),
        retry_after=read_retry_after(error.response.headers),
        refusal=body if status in (400, 422) else None,
    )


def _redacted(answer: Answer, key: _Secret) -> Answer:
    return replace(
        answer,
        text=key.redact(answer.text),
        reasoning=key.redact(answer.reasoning),
        model=key.redact(answer.model),
    )


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _short(text: str, key: _Secret) -> str:
    """One line without the key and without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in key.redact(text)).split())
    return line if len(line) <= LONGEST_ERROR else f"{line[:LONGEST_ERROR]}..."
