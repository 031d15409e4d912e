from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tools.models.base import ModelProfile, ModelRequest
from tools.models.body import Quirks, learn, request_body
from tools.models.charging import bound

PLAIN = Quirks(frozenset(), "max_tokens")


def test_only_what_was_set_is_sent(profile: Callable[..., ModelProfile], ask: Callable[..., ModelRequest]) -> None:
    body = request_body(profile("http://h/v1"), ask(temperature=0.5, seed=0), PLAIN)
    assert body.keys() == {"model", "messages", "temperature", "seed", "max_tokens"}
    assert body["messages"][1] == {"role": "user", "content": "Write a kernel."}


def test_what_is_sent_as_max_tokens_is_what_is_reserved(
    profile: Callable[..., ModelProfile], ask: Callable[..., ModelRequest]
) -> None:
    small = profile("http://h/v1", max_tokens=300)
    assert request_body(small, ask(), PLAIN)["max_tokens"] == bound(small, ask()).usage.output == 300


def test_the_reservation_holds_the_dearest_reading(
    profile: Callable[..., ModelProfile], ask: Callable[..., ModelRequest]
) -> None:
    charge = bound(profile("http://h/v1"), ask())
    assert (charge.calls, charge.usage.uncached, charge.usage.output) == (1, ask().prompt_bound, 1000)
    assert charge.dollars == pytest.approx((ask().prompt_bound * 1.0 + 1000 * 10.0) / 1e6)


def test_the_profile_has_the_last_word(profile: Callable[..., ModelProfile], ask: Callable[..., ModelRequest]) -> None:
    given = profile("http://h/v1", extra_body={"chat_template_kwargs": {"thinking": True}, "seed": 3})
    body = request_body(given, ask(seed=1), PLAIN)
    assert (body["chat_template_kwargs"], body["seed"]) == ({"thinking": True}, 3)


def test_profile_quirks_are_obeyed(profile: Callable[..., ModelProfile], ask: Callable[..., ModelRequest]) -> None:
    given = profile(
        "http://h/v1", unsupported=["temperature", "stream_options"], max_tokens_field="max_completion_tokens"
    )
    body = request_body(given, ask(temperature=0.5), Quirks.of(given), stream=True)
    assert body.keys() == {"model", "messages", "max_completion_tokens", "stream"}


SENT = {"model": "m", "messages": [], "temperature": 0.2, "max_tokens": 100, "seed": 1}


@pytest.mark.parametrize(
    "refusal",
    [
        {
            "message": "Unsupported value: 'temperature' does not support 0.2 with this model.",
            "param": "temperature",
        },
        {"message": "Unsupported parameter: temperature", "param": None},
        {"error": {"message": "temperature is not supported"}},
        {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]},
        "unknown field temperature",
    ],
)
def test_a_refused_parameter_is_left_out(refusal: object) -> None:
    learned = learn(PLAIN, SENT, refusal)
    assert learned is not None
    assert learned[0] == Quirks(frozenset({"temperature"}), "max_tokens")


def test_max_tokens_gets_its_other_name() -> None:
    text = "Unsupported parameter: 'max_tokens' is not supported here. Use 'max_completion_tokens' instead."
    learned = learn(PLAIN, SENT, {"message": text, "param": "max_tokens"})
    assert learned is not None
    assert learned[0] == replace(PLAIN, max_tokens_field="max_completion_tokens")


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "temperature must be between 0 and 2", "param": "temperature"},
        {"message": "max_tokens is too large: 100. This model takes at most 10", "param": "max_tokens"},
        {"message": "the maximum context length is 10 tokens", "param": "messages"},
        {"message": "top_p is not supported", "param": "top_p"},
        {"message": "messages with images are not supported", "param": None},
        {"message": "unsupported: my_temperature_x", "param": None},
        {"message": 5},
        [],
        None,
        "",
    ],
)
def test_other_errors_teach_nothing(refusal: object) -> None:
    assert learn(PLAIN, SENT, refusal) is None
