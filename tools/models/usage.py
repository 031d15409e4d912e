"""Token counts of one answer, from what the server says and what was seen of it.

The server's counts are what is billed, so they are taken as they are wherever they can be true. What cannot
be true counts as not said, and what was not said is estimated; both set `Usage.estimated`, so that a
comparison at equal tokens can warn.

    not a count         bool, string, NaN, infinity, fraction, negative, above CEILING (12.0 is one)
    below the floor     fewer tokens than bytes seen / LONGEST_TOKEN: no vocabulary has longer tokens
    cached > prompt     no token counts as cached, which is the dearer reading
    reasoning > output  not said, unless `total_tokens` shows that it is counted beside the output

A count above what was reserved is none of these: it is charged as reported, and the meter flags the excess.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tools.metering import Usage

BYTES_PER_TOKEN = 4
"""UTF-8 bytes for a token where the server is silent: prose and code in usual vocabularies have 3 to 4."""
LONGEST_TOKEN = 256
"""UTF-8 bytes of the longest token of any vocabulary, with room: the long ones are runs of 128 blanks."""
CEILING = 10_000_000
"""No server serves a context of more tokens than this; a larger number is not a count."""


@dataclass(frozen=True, slots=True)
class Seen:
    """UTF-8 bytes of the prompt that was sent and of the text and reasoning that came back."""

    prompt: int
    output: int


def utf8_bytes(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)


def estimate_tokens(seen_bytes: int) -> int:
    return math.ceil(seen_bytes / BYTES_PER_TOKEN)


def read_count(value: object) -> int | None:
    """The count that `value` is, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if 0 <= value <= CEILING else None


def read_usage(raw: object, seen: Seen, *, doubtful: bool = False) -> Usage:
    """The usage object of a chat completion as a `Usage`. `doubtful`: the caller saw it contradict itself."""
    fields = raw if isinstance(raw, dict) else {}
    reasoning, reasoning_said = _detail(fields, "completion_tokens_details", "reasoning_tokens", "reasoning_tokens")
    cached, cached_said = _detail(fields, "prompt_tokens_details", "cached_tokens", "prompt_cache_hit_tokens")
    prompt = _credible(read_count(fields.get("prompt_tokens")), seen.prompt)
    output = _credible(_whole_output(fields, reasoning), seen.output)
    doubtful = doubtful or prompt is None or output is None
    doubtful = doubtful or (cached_said and cached is None) or (reasoning_said and reasoning is None)
    prompt = estimate_tokens(seen.prompt) if prompt is None else prompt
    output = estimate_tokens(seen.output) if output is None else output
    if cached is not None and cached > prompt:
        cached, doubtful = 0, True
    if reasoning is not None and reasoning > output:
        reasoning, doubtful = None, True
    return Usage(
        uncached=prompt - (cached or 0),
        cached=cached or 0,
        output=output,
        reasoning=reasoning,
        estimated=doubtful,
    )


def estimated_usage(seen: Seen) -> Usage:
    """Both sides from the bytes seen, for an answer that no server counted."""
    return read_usage(None, seen)


def _whole_output(fields: dict[str, object], reasoning: int | None) -> int | None:
    """Output tokens, reasoning included. Some servers count reasoning beside it: their total tells."""
    prompt, output, total = (read_count(fields.get(f"{n}_tokens")) for n in ("prompt", "completion", "total"))
    if output is None or prompt is None or total is None or not reasoning:
        return output
    return output + reasoning if total == prompt + output + reasoning else output


def _credible(count: int | None, seen_bytes: int) -> int | None:
    return None if count is None or count < math.ceil(seen_bytes / LONGEST_TOKEN) else count


def _detail(fields: dict[str, object], group: str, name: str, flat: str) -> tuple[int | None, bool]:
    """One detail count and whether the server said anything for it; `flat` is its name at the top level."""
    details = fields.get(group)
    value = details.get(name) if isinstance(details, dict) else None
    if value is None:
        value = fields.get(flat)
    return read_count(value), value is not None


class StreamedUsage:
    """Usage over the chunks of a stream. Counts are cumulative, so the largest stands wherever it comes.

    Servers send it in a last chunk without choices, in every chunk, beside the finish reason, or twice. A
    later object that says less, or is no usage at all, makes the result doubtful.
    """

    def __init__(self) -> None:
        self.raw: object = None
        self.doubtful = False
        self._total = -1

    def add(self, raw: object) -> None:
        if raw is None:
            return
        counts = (
            [read_count(raw.get(n)) for n in ("prompt_tokens", "completion_tokens")]
            if isinstance(raw, dict)
            else [None]
        )
        total = sum(count or 0 for count in counts)
        self.doubtful = self.doubtful or None in counts or total < self._total
        if total > self._total:
            self.raw, self._total = raw, total
