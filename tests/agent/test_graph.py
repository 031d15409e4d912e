from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

from langgraph.types import RetryPolicy

from agent.graph import build, make_graph, recursion_limit
from agent.state import AttemptState

ROOT = Path(__file__).parents[2]


def test_the_edges_are_those_of_the_design() -> None:
    drawn = {(edge.source, edge.target) for edge in make_graph().get_graph().edges}
    assert drawn == {
        *(
            ("__start__", "generate"),
            ("__start__", "compile"),
            ("generate", "compile"),
            ("generate", "critique"),
        ),
        *(
            ("generate", "__end__"),
            ("compile", "test"),
            ("compile", "critique"),
            ("test", "profile"),
            ("test", "critique"),
        ),
        *(("profile", "critique"), ("critique", "generate"), ("critique", "__end__")),
    }


def test_no_node_has_a_retry_policy() -> None:
    policies: list[RetryPolicy] = []
    for node in build().nodes.values():
        policies += node.retry_policy or ()
    assert not policies


def test_the_state_has_no_room_for_more_than_ids_numbers_and_texts() -> None:
    kinds = {kind for hint in get_type_hints(AttemptState).values() for kind in (get_args(hint) or (hint,))}
    assert kinds == {str, int, type(None)}


def test_the_recursion_limit_holds_the_longest_attempt() -> None:
    assert recursion_limit(1) >= 5
    assert recursion_limit(4) >= 20


def test_langgraph_json_names_the_factory() -> None:
    spec = json.loads((ROOT / "langgraph.json").read_text())
    path, _, name = spec["graphs"]["attempt"].partition(":")
    assert (ROOT / path).is_file()
    assert name == make_graph.__name__
