"""A meter, requests and profiles for the tests of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from tools.metering import BudgetExhausted, Charge
from tools.models.base import Message, ModelProfile, ModelRequest, Prices, Sampling
from tools.models.replies import Reply
from tools.models.server import LocalServer


class TestMeter:
    """A ledger with one axis, calls: reservations by key, settlements, and every movement in order."""

    __test__ = False

    def __init__(self, calls: int = 100) -> None:
        self.calls = calls
        self.held: dict[str, Charge] = {}
        self.settled: dict[str, Charge] = {}
        self.refunds: dict[str, str] = {}
        self.excess: list[str] = []

    def reserve(self, key: str, bound: Charge) -> None:
        assert key not in self.held, "reserved twice"
        assert key not in self.settled, "a key is used again"
        spent = sum(c.calls for c in (*self.held.values(), *self.settled.values()))
        if spent + bound.calls > self.calls:
            raise BudgetExhausted("calls", "no call is left")
        self.held[key] = bound

    def settle(self, key: str, actual: Charge) -> None:
        bound = self.held.pop(key)
        if actual.usage.tokens > bound.usage.tokens:
            self.excess.append(key)
        self.settled[key] = actual

    def refund(self, key: str, reason: str) -> None:
        del self.held[key]
        self.refunds[key] = reason


@pytest.fixture
def meter() -> TestMeter:
    return TestMeter()


@pytest.fixture
def new_meter() -> Callable[..., TestMeter]:
    return TestMeter


@pytest.fixture
def ask() -> Callable[..., ModelRequest]:
    """Makes a request: `ask("a0001/1", "prompt", temperature=0.5)`."""

    def make(request_id: str = "a0001/1", prompt: str = "Write a kernel.", **sampling: object) -> ModelRequest:
        messages = (
            Message(role="system", content="You write kernels."),
            Message(role="user", content=prompt),
        )
        return ModelRequest(
            id=request_id,
            messages=messages,
            sampling=Sampling.model_validate({"max_tokens": 1000, **sampling}),
        )

    return make


@pytest.fixture
def profile() -> Callable[..., ModelProfile]:
    """Makes a profile for a base URL."""

    def make(url: str, **fields: object) -> ModelProfile:
        given = {"name": "local", "model": "m", "base_url": url, "timeout_seconds": 5.0, **fields}
        prices = Prices(uncached=1.0, cached=0.1, output=10.0)
        return ModelProfile.model_validate({"prices": prices, **given})

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., LocalServer]]:
    """Starts local servers that end with the test."""
    servers: list[LocalServer] = []

    def start(replies: Sequence[Reply] = (), **options: object) -> LocalServer:
        servers.append(LocalServer(replies, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()
