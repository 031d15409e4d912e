from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.metering import Usage
from tools.models.usage import CEILING, Seen, StreamedUsage, estimated_usage, read_count, read_usage

SEEN = Seen(prompt=400, output=800)
HONEST = {"prompt_tokens": 110, "completion_tokens": 210, "total_tokens": 320}


def test_honest_counts_are_taken_as_they_are() -> None:
    raw = {
        **HONEST,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 150},
    }
    assert read_usage(raw, SEEN) == Usage(uncached=46, cached=64, output=210, reasoning=150)


def test_silence_about_reasoning_is_not_zero() -> None:
    assert read_usage(HONEST, SEEN).reasoning is None
    assert read_usage({**HONEST, "completion_tokens_details": None}, SEEN) == Usage(uncached=110, output=210)


def test_the_names_of_deepseek_for_the_cache() -> None:
    raw = {**HONEST, "prompt_cache_hit_tokens": 100, "prompt_cache_miss_tokens": 10}
    assert read_usage(raw, SEEN) == Usage(uncached=10, cached=100, output=210)


@pytest.mark.parametrize("raw", [None, {}, "many", 7, [], {"prompt_tokens": None, "completion_tokens": None}])
def test_missing_usage_is_estimated_from_bytes_and_flagged(raw: object) -> None:
    assert read_usage(raw, SEEN) == Usage(uncached=100, output=200, estimated=True) == estimated_usage(SEEN)


LIES: list[Any] = [
    -1,
    -210.0,
    10**12,
    10**400,
    math.nan,
    math.inf,
    -math.inf,
    2.5,
    "210",
    True,
    [210],
    {"n": 1},
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[:12])
def test_what_is_not_a_count_is_estimated_and_the_other_side_stands(lie: object) -> None:
    usage = read_usage({**HONEST, "completion_tokens": lie}, SEEN)
    assert usage == Usage(uncached=110, output=200, estimated=True)
    usage = read_usage({**HONEST, "prompt_tokens": lie}, SEEN)
    assert usage == Usage(uncached=100, output=210, estimated=True)


def test_a_whole_float_is_a_count() -> None:
    assert read_usage({"prompt_tokens": 110.0, "completion_tokens": 210.0}, SEEN) == Usage(uncached=110, output=210)


def test_zero_usage_for_a_text_that_was_seen_is_not_believed() -> None:
    zero = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert read_usage(zero, SEEN) == Usage(uncached=100, output=200, estimated=True)


def test_zero_usage_for_an_empty_answer_is_believed() -> None:
    assert read_usage({"prompt_tokens": 10, "completion_tokens": 0}, Seen(40, 0)) == Usage(uncached=10)


def test_the_floor_is_the_longest_token_there_is() -> None:
    assert not read_usage({"prompt_tokens": 2, "completion_tokens": 4}, Seen(512, 1024)).estimated
    assert read_usage({"prompt_tokens": 2, "completion_tokens": 3}, Seen(512, 1024)).estimated


def test_more_than_was_seen_is_charged_as_reported() -> None:
    assert read_usage({"prompt_tokens": 110, "completion_tokens": 90_000}, SEEN) == Usage(uncached=110, output=90_000)


def test_more_cached_than_prompt_counts_nothing_as_cached() -> None:
    raw = {**HONEST, "prompt_tokens_details": {"cached_tokens": 111}}
    assert read_usage(raw, SEEN) == Usage(uncached=110, output=210, estimated=True)


def test_reasoning_beside_the_output_is_added_where_the_total_shows_it() -> None:
    raw = {"prompt_tokens": 110, "completion_tokens": 60, "total_tokens": 320, "reasoning_tokens": 150}
    assert read_usage(raw, SEEN) == Usage(uncached=110, output=210, reasoning=150)


def test_more_reasoning_than_output_is_not_believed_otherwise() -> None:
    raw = {**HONEST, "completion_tokens_details": {"reasoning_tokens": 211}}
    assert read_usage(raw, SEEN) == Usage(uncached=110, output=210, estimated=True)


@pytest.mark.parametrize("details", ["many", {"reasoning_tokens": "many"}, {"reasoning_tokens": -4}])
def test_nonsense_in_the_details_leaves_the_counts(details: object) -> None:
    usage = read_usage({**HONEST, "completion_tokens_details": details}, SEEN)
    assert (usage.uncached, usage.output, usage.reasoning) == (110, 210, None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens", "prompt_cache_hit_tokens")
GROUPS = {"prompt_tokens_details": ("cached_tokens",), "completion_tokens_details": ("reasoning_tokens",)}
USAGE = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(NAMES, JSON)
    | {group: JSON | st.fixed_dictionaries(dict.fromkeys(names, JSON)) for group, names in GROUPS.items()},
)


@settings(deadline=None)
@given(raw=USAGE | JSON, prompt=st.integers(0, 10**6), output=st.integers(0, 10**6))
def test_nothing_a_server_says_raises_or_makes_an_impossible_usage(raw: object, prompt: int, output: int) -> None:
    usage = read_usage(raw, Seen(prompt, output))
    assert usage.uncached + usage.cached >= math.ceil(prompt / 256)
    assert usage.output >= math.ceil(output / 256)
    assert usage.tokens <= 3 * CEILING


@settings(deadline=None)
@given(JSON)
def test_a_count_is_a_whole_number_in_range(value: object) -> None:
    count = read_count(value)
    assert count is None or (0 <= count <= CEILING and count == value)


def streamed(*chunks: object) -> Usage:
    usage = StreamedUsage()
    for chunk in chunks:
        usage.add(chunk)
    return read_usage(usage.raw, SEEN, doubtful=usage.doubtful)


def test_cumulative_usage_in_every_chunk_counts_once() -> None:
    growing = [{"prompt_tokens": 110, "completion_tokens": n} for n in (1, 100, 210)]
    assert streamed(None, *growing, None) == Usage(uncached=110, output=210)


def test_the_same_usage_twice_counts_once() -> None:
    assert streamed(HONEST, HONEST) == Usage(uncached=110, output=210)


@pytest.mark.parametrize(
    "late", [{"prompt_tokens": 0, "completion_tokens": 0}, {"completion_tokens": 10**12}, "none", {}]
)
def test_a_later_usage_that_says_less_does_not_win_and_is_flagged(late: object) -> None:
    assert streamed(HONEST, late) == Usage(uncached=110, output=210, estimated=True)
