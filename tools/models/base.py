"""The records and the protocol of a model. `gateway.py` is the only caller of `Model.complete`.

A model is a short profile (URL, name, limits, prices, quirks) and one coroutine. A new kind of model is a
sibling file with one class, named in the dict of `tools/models/__init__.py` or found by the entry point
group `warpsmith.models`.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol

from pydantic import Field

from tools.metering import Usage
from verifier.errors import InfrastructureError, WarpsmithError
from verifier.verdict import Record


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Record):
    """Sampling parameters. None leaves the server's default."""

    max_tokens: int = Field(default=16384, gt=0)
    """Bound of generated tokens, reasoning included; it is what the ledger reserves."""
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    reasoning_effort: str | None = None


class ModelRequest(Record):
    """One question. `id` is unique in a run: `ATTEMPT/TURN`, for example `a0007/1`."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    sampling: Sampling = Sampling()

    @property
    def digest(self) -> str:
        """SHA-256 of the messages and the sampling parameters, hex, first 16 digits."""
        return hashlib.sha256(self.model_dump_json(exclude={"id"}).encode()).hexdigest()[:16]

    @property
    def prompt_bound(self) -> int:
        """Upper bound of the prompt's tokens: a token is at least a byte; 16 for each message's frame."""
        return sum(len(m.content.encode()) + 16 for m in self.messages) + 16


class HttpAttempt(Record):
    """One request to a server as the gateway's retry loop saw it."""

    status: int | None
    """HTTP status, None when there was no answer."""
    error: str = ""
    seconds: float
    waited: float = 0.0
    """Seconds slept before the next attempt."""
    sent: bool = True
    """False where no connection was made, so that no server saw the request."""


class Completion(Record):
    """One answer."""

    request: str
    """`ModelRequest.id`."""
    text: str
    reasoning: str = ""
    usage: Usage
    finish_reason: Literal["stop", "length", "other"] = "stop"
    model: str
    """What the server says it is, or the profile's name."""
    seconds: float = 0.0
    attempts: tuple[HttpAttempt, ...] = ()


class Prices(Record):
    """US dollars for a million tokens; pinned in the manifest."""

    uncached: float = Field(default=0.0, ge=0)
    cached: float = Field(default=0.0, ge=0)
    output: float = Field(default=0.0, ge=0)

    def dollars(self, usage: Usage) -> float:
        return (usage.uncached * self.uncached + usage.cached * self.cached + usage.output * self.output) / 1e6


class ModelProfile(Record):
    """What differs between servers, as data. It names the key's variable and never holds the key."""

    name: str
    model: str = ""
    """Name sent to the server."""
    base_url: str = ""
    api_key_env: str = ""
    prices: Prices = Prices()
    max_tokens: int = 16384
    timeout_seconds: float = 600.0
    stream: bool = False
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    unsupported: frozenset[str] = frozenset()
    """Sampling parameters that the server refuses."""
    extra_body: dict[str, object] = Field(default_factory=dict)
    is_language_model: bool = True
    """False for the template sampler; every report says so."""
    remote: bool = True
    """False where no request leaves this process (batch, replay): a crash then loses no paid answer."""


class ModelError(InfrastructureError):
    """The server could not be reached or answered with errors until the retries ended. Its message never
    holds a key.

    `attempts` are the HTTP requests that were made; they carry no usage.
    """

    def __init__(self, message: str, *, attempts: tuple[HttpAttempt, ...] = (), next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.attempts = attempts


class AnswerPending(WarpsmithError):
    """A batch model has no answer yet. Control flow, not a fault: the attempt waits."""

    def __init__(self, request: ModelRequest) -> None:
        super().__init__(f"request {request.id} waits for an answer")
        self.request = request


class Model(Protocol):
    """Anything that answers a request."""

    profile: ModelProfile

    async def complete(self, request: ModelRequest) -> Completion:
        """One answer. Raises ModelError, or AnswerPending where answers come by hand or by file."""
        ...
