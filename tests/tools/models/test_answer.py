from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.models.answer import Answer, BadAnswer, StreamReader, parse_json, read_body, split_thinking


def body(message: object, finish: object = "stop", **rest: object) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **rest}


def read_stream(*chunks: object, done: bool = True, step: int = 7) -> Answer:
    data = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)
    data += b"data: [DONE]\n\n" if done else b""
    reader = StreamReader()
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
    return reader.finish()


def delta(finish: str | None = None, **fields: object) -> dict[str, Any]:
    return {"model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("plain", "plain", ""),
        ("<think>why</think>\n\nbecause", "because", "why"),
        ("\n <think>\nwhy\n</think>because", "because", "why"),
        ("<think>cut off in the mid", "", "cut off in the mid"),
        ("opened in the prompt</think>\nanswer", "answer", "opened in the prompt"),
        ("<think></think>answer", "answer", ""),
        ("the tag <think> in a text", "the tag <think> in a text", ""),
        ("say <think>x</think> y", "say <think>x</think> y", ""),
        ("<think>a</think>b</think>c", "b</think>c", "a"),
        ("", "", ""),
    ],
)
def test_thinking_in_the_content(content: str, text: str, reasoning: str) -> None:
    assert split_thinking(content) == (text, reasoning)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_in_its_own_field(name: str) -> None:
    answer = read_body(body({"content": "because", name: "why"}))
    assert (answer.text, answer.reasoning) == ("because", "why")
    streamed = read_stream(delta(**{name: "w"}), delta(**{name: "hy"}), delta(content="because"), delta("stop"))
    assert (streamed.text, streamed.reasoning) == ("because", "why")


def test_two_fields_with_the_same_thought_count_once() -> None:
    assert read_body(body({"content": "x", "reasoning": "why", "reasoning_content": "why"})).reasoning == "why"


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_a_tag_may_be_split_over_chunks_and_bytes(step: int) -> None:
    content = "<think>päper 🙂\u2028why</think>\n\nbecause\u2028\x85 é"
    chunks = [delta(content=content[i : i + step]) for i in range(0, len(content), step)]
    answer = read_stream(*chunks, delta("stop"), step=step)
    assert (answer.text, answer.reasoning) == ("because\u2028\x85 é", "päper 🙂\u2028why")


def test_raw_line_separators_in_a_text_do_not_end_a_line() -> None:
    reader = StreamReader()
    reader.feed('data: {"choices":[{"delta":{"content":"a\u2028b\x85c"},"finish_reason":"stop"}]}\r\n\r\n'.encode())
    assert reader.finish().text == "a\u2028b\x85c"


def test_halves_of_a_character_are_joined_and_a_lone_half_is_replaced() -> None:
    answer = read_stream(delta(content="x\ud83d"), delta(content="\ude42y\udfff"), delta("stop"))
    assert answer.text == "x🙂y\ufffd"
    answer.text.encode()


def test_truncation_while_thinking_is_kept() -> None:
    answer = read_body(body({"content": "<think>on and on"}, "length"))
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("", "on and on", "length")
    answer = read_body(body({"content": None, "reasoning_content": "on and on"}, "length"))
    assert (answer.text, answer.finish_reason) == ("", "length")


def test_an_unknown_finish_reason_is_other() -> None:
    assert read_body(body({"content": "x"}, "content_filter")).finish_reason == "other"
    assert read_body(body({"content": "x"}, None)).finish_reason == "other"


def test_content_as_a_list_of_parts() -> None:
    assert read_body(body({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})).text == "ab"


def test_a_stream_may_end_without_its_mark_after_a_finish_reason() -> None:
    assert read_stream(delta("stop", content="x"), done=False).text == "x"


def test_a_stream_that_just_ends_was_cut() -> None:
    with pytest.raises(BadAnswer, match="cut"):
        read_stream(delta(content="x"), done=False)


def test_comments_and_other_choices_are_skipped() -> None:
    reader = StreamReader()
    reader.feed(b": keep-alive\n\nevent: ping\n\n")
    reader.feed(b'data: {"choices":[{"index":1,"delta":{"content":"no"}},{"index":0,"delta":{"content":"yes"}}]}\n')
    reader.feed(b"data: [DONE]\n")
    assert reader.finish().text == "yes"


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        "text",
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        {"choices": {"0": {}}},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"error": {"message": "overloaded"}},
        {"error": "overloaded", "choices": []},
    ],
)
def test_a_body_that_is_no_completion(bad: object) -> None:
    with pytest.raises(BadAnswer):
        read_body(bad)


def test_an_error_inside_a_stream_is_named() -> None:
    with pytest.raises(BadAnswer, match="overloaded"):
        read_stream(delta(content="x"), {"error": {"message": "overloaded"}})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000, b"1" * 10_000])
def test_what_json_cannot_read(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "message", "content", "usage", "error"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON, st.lists(JSON, max_size=3))
def test_any_json_is_an_answer_or_a_bad_answer(whole: object, chunks: list[object]) -> None:
    for read in (lambda: read_body(whole), lambda: read_stream(*chunks)):
        with suppress(BadAnswer):
            assert isinstance(read().text, str)
