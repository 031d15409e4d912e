from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.parsing import parse

CLASS = "class ModelNew:\n    pass"


def block(body: str, mark: str = "```", info: str = "python") -> str:
    return f"{mark}{info}\n{body}\n{mark}\n"


def test_the_last_complete_block_counts() -> None:
    first, last = block(CLASS + "  # one"), block(CLASS + "  # two")
    assert parse(f"Try\n{first}or better\n{last}That is all.").source == CLASS + "  # two\n"


def test_an_unfinished_last_block_leaves_the_complete_one_before_it() -> None:
    assert parse(block(CLASS) + "```python\nclass ModelNew:\n    def").source == CLASS + "\n"


@pytest.mark.parametrize(
    "text",
    [
        block(CLASS, "~~~"),
        block(CLASS, "`````"),
        block(CLASS, info=""),
        block(CLASS, info="py"),
        block(CLASS, info=" python title=x.py"),
        block(CLASS).replace("\n", "\r\n"),
        block(CLASS).replace("\n", "\r"),
        "  " + block(CLASS).replace("\n```", "\n   ```"),
        f"<think>{block('class ModelNew: wrong = 1')}</think>{block(CLASS)}",
        f"{block('class ModelNew: wrong = 1')}</think>\n{block(CLASS)}",
        block(CLASS) + "Run it:\n" + block("python x.py", info="bash"),
        f"```python\nhalf of it\n```python\n{CLASS}\n```",
        block(CLASS).rstrip("\n"),
    ],
)
def test_forms_of_a_block(text: str) -> None:
    assert parse(text).source == CLASS + "\n"


def test_a_fence_inside_a_longer_fence_is_text() -> None:
    body = f'"""\n```python\nexample\n```\n"""\n{CLASS}'
    assert parse(block(body, "````")).source == body + "\n"
    assert parse(block(body, "~~~")).source == body + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no fenced"),
        ("class ModelNew: pass", "no fenced"),
        ("I use `class ModelNew`.", "no fenced"),
        (f"```python\n{CLASS}", "not closed"),
        (block("class Model: pass"), "no class ModelNew"),
        (block("class ModelNewer: pass"), "no class ModelNew"),
        (block("    class ModelNew: pass"), "no class ModelNew"),
        (block(CLASS) + block("x = 1"), "no class ModelNew"),
        (block(CLASS, info="text"), "no fenced"),
        (f"<think>I would write\n{block(CLASS)}", "no fenced"),
        (f"    {block(CLASS)}", "no fenced|not closed"),
    ],
)
def test_a_reply_without_a_candidate_says_why(text: str, reason: str) -> None:
    parsed = parse(text)
    assert parsed.source is None
    assert re.search(reason, parsed.problem)


@given(st.text(alphabet=st.sampled_from(list("`~\n\r a<think>/python class ModelNew:")), max_size=300))
def test_no_text_breaks_the_parser(text: str) -> None:
    parsed = parse(text)
    assert (parsed.source is None) == bool(parsed.problem)


@given(st.text(alphabet=st.characters(blacklist_characters="`~\r<", blacklist_categories=["Cs"]), max_size=200))
def test_what_is_inside_a_fence_comes_out_unchanged(body: str) -> None:
    whole = f"{body}\n{CLASS}".strip("\n")
    assert parse(f"Text.\n{block(whole)}More.").source == whole + "\n"
