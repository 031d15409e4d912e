from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tools.models.retry import RetryPolicy, is_retried, read_retry_after


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_statuses_that_may_pass(status: int) -> None:
    assert is_retried(status, None)


@pytest.mark.parametrize("status", [301, 400, 401, 402, 403, 404, 413, 422])
def test_statuses_that_will_not(status: int) -> None:
    assert not is_retried(status, None)


def test_a_spent_quota_is_not_waited_for() -> None:
    assert not is_retried(429, {"code": "insufficient_quota"})
    assert not is_retried(429, {"error": {"code": "insufficient_quota"}})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "0"}, 0.0),
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 01 Jan 2021 00:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers) == seconds


def test_retry_after_as_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    seconds = read_retry_after({"retry-after": date})
    assert seconds is not None
    assert 25 < seconds <= 30


def test_the_wait_doubles_with_a_jitter_that_repeats_and_is_capped() -> None:
    policy = RetryPolicy(first_wait=1.0, longest_wait=10.0)
    waits = [policy.wait("digest", n, None) for n in range(8)]
    assert waits == [policy.wait("digest", n, None) for n in range(8)]
    assert waits != [policy.wait("other", n, None) for n in range(8)]
    assert all(0.5 * min(2.0**n, 10.0) <= wait <= min(2.0**n, 10.0) for n, wait in enumerate(waits))


def test_the_server_s_wish_is_kept_up_to_the_cap() -> None:
    policy = RetryPolicy(longest_wait=10.0)
    assert policy.wait("digest", 0, 7.5) == 7.5
    assert policy.wait("digest", 0, 86_400.0) == 10.0
