"""When to ask a server again and how long to wait first. Pure; the loop is in `openai_compatible.py`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED = frozenset({408, 409, 429})
"""HTTP statuses that are asked again, beside every 5xx."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the loop: requests in all (learning a quirk included), first and longest wait in seconds."""

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    unreached: int = 3
    """Attempts in a row that made no connection, after which nobody seems to listen."""

    def wait(self, seed: str, attempt: int, retry_after: float | None) -> float:
        """Seconds before attempt `attempt + 1` (0-based): the server's wish, capped, or doubling with jitter.

        The jitter (half to whole) comes from a hash of `seed`, so that a repeated run waits the same.
        """
        if retry_after is not None:
            return min(retry_after, self.longest_wait)
        unit = int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:4]) / 2**32
        return min(self.first_wait * 2.0**attempt, self.longest_wait) * (0.5 + 0.5 * unit)


def is_retried(status: int, body: object) -> bool:
    """Whether a status is worth another try. A spent quota is a 429 that waiting does not cure."""
    if _code(body) == "insufficient_quota":
        return False
    return status in RETRIED or status >= 500


def _code(body: object) -> object:
    error = body.get("error", body) if isinstance(body, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (seconds or a date); None where absent or nonsense."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        seconds = _seconds(headers.get(name, ""))
        if seconds is not None:
            return seconds * scale
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
