from __future__ import annotations

from typing import Any

import pytest

from tools.models.base import Message
from tools.models.sampler.brief import Brief, read_brief
from tools.models.sampler.genome import Genome
from tools.models.sampler.render import render
from tools.models.sampler.task import Task

A = Genome(variant="two_pass", mistakes=("no_scale",))
B = Genome(variant="split_kv")


def brief(*texts: str) -> Brief:
    roles = ["user", "assistant"]
    return read_brief([Message(role=roles[i % 2], content=t) for i, t in enumerate(texts)])  # type: ignore[arg-type]


def shown(genome: Genome) -> str:
    return render(genome, Task("causal"))


@pytest.mark.parametrize("operator", ["draft", "repair", "refine", "diversify", "crossover"])
def test_the_operator_is_read_from_the_last_paragraph(kit: Any, operator: str) -> None:
    attempts = () if operator == "draft" else ((shown(A), "Status: wrong. Fix it, make it faster."),)
    assert brief(kit.prompt("causal", operator, *attempts)).operator == operator


def test_parents_come_in_order_with_their_own_feedback(kit: Any) -> None:
    found = brief(kit.prompt("causal", "crossover", (shown(A), "Status: wrong."), (shown(B), "Status: correct.")))
    assert [p.genome for p in found.parents] == [A, B]
    assert [p.status for p in found.parents] == ["wrong", "correct"]


def test_attempts_shown_beside_are_not_parents(kit: Any) -> None:
    text = kit.prompt("causal", "repair", (shown(A), "Status: wrong."))
    beside = f"## Also tried (a9): other\n```python\n{shown(B)}```\nFeedback on it:\nStatus: correct.\n\n"
    found = brief(text.replace(kit.asks["repair"], beside + kit.asks["repair"]))
    assert [p.genome for p in found.parents] == [A]


def test_an_answer_in_the_conversation_is_the_parent(kit: Any) -> None:
    found = brief(kit.prompt("causal", "draft"), f"Here:\n```python\n{shown(A)}```\n", "Status: out_of_bounds. Line 3.")
    assert found.operator == "repair"
    assert [(p.genome, p.status) for p in found.parents] == [(A, "out_of_bounds")]


def test_a_reply_without_code_leaves_no_parent(kit: Any) -> None:
    text = kit.prompt("causal", "draft").replace(kit.asks["draft"], "")
    text += (
        "## The candidate to repair (a1): x\nFeedback on it:\nStatus: unparsable. Not closed.\n\n" + kit.asks["repair"]
    )
    found = brief(text)
    assert found.operator == "repair"
    assert found.parents == ()
    assert found.attempts[-1].status == "unparsable"


def test_the_widest_head_of_the_workloads_counts(kit: Any) -> None:
    task = brief(kit.prompt("causal", "draft").replace("Write", "- d128 (timed): head_dim = 128\n\nWrite")).task
    assert task is not None
    assert task.head_dim == 128


@pytest.mark.parametrize(
    "text", ["", "```", "```python\n", "## a\n## b", "```python\nclass Model(\n```", "# genome: {"]
)
def test_nonsense_is_a_draft_without_a_task(text: str) -> None:
    found = brief(text or " ")
    assert (found.operator, found.task) == ("draft", None)
