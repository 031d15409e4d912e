"""One attempt as a LangGraph state machine.

    START -> generate -> compile -> test -> profile -> critique -> END
      |          ^          |         |                  ^  |
      |          |          +---------+---- decided -----+  |
      |          +------------- repair, while turns are left
      +-> compile, for a candidate that was given

One graph run per attempt (`thread_id` = run/attempt): in one graph for all attempts, LangGraph's super-step
barrier would make each of them wait for the slowest. No node has a retry policy: the default one repeats
calls that were charged. Retries are the gateway's, where each is metered, and the loop's, where
infrastructure faults are refunded.
"""

from __future__ import annotations

from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from agent.context import Context
from agent.nodes.compile import compile
from agent.nodes.critique import critique
from agent.nodes.generate import generate
from agent.nodes.profile import profile
from agent.nodes.test import test
from agent.state import AttemptState
from verifier.verdict import Status

AttemptGraph = CompiledStateGraph[AttemptState, Context, AttemptState, AttemptState]
ENDED = frozenset({Status.CORRECT.value, Status.UNTESTED.value})
"""Statuses that a repair does not follow."""


def build(checkpointer: BaseCheckpointSaver[Any] | None = None) -> AttemptGraph:
    """The compiled graph. Run it with `context=Context(...)`."""
    graph = StateGraph(AttemptState, context_schema=Context)
    graph.add_node("generate", generate)
    graph.add_node("compile", compile)
    graph.add_node("test", test)
    graph.add_node("profile", profile)
    graph.add_node("critique", critique)
    graph.add_conditional_edges(START, _entry, ["generate", "compile"])
    graph.add_conditional_edges("generate", _after_generate, ["compile", "critique", END])
    graph.add_conditional_edges("compile", _decided_or("test"), ["test", "critique"])
    graph.add_conditional_edges("test", _decided_or("profile"), ["profile", "critique"])
    graph.add_edge("profile", "critique")
    graph.add_conditional_edges("critique", _after_critique, ["generate", END])
    return graph.compile(checkpointer=checkpointer, name="attempt")


def make_graph() -> AttemptGraph:
    """The graph for tools that read `langgraph.json`; its dependencies come with the context of a run."""
    return build()


def recursion_limit(turns: int) -> int:
    """Super-steps of an attempt of `turns` model calls, and a few to spare."""
    return 5 * turns + 3


# Routes are coroutines: LangGraph would run a plain function on another thread.


async def _entry(state: AttemptState) -> str:
    return "compile" if state["candidate"] else "generate"


async def _after_generate(state: AttemptState) -> str:
    if state["note"]:
        return END
    return "compile" if state["candidate"] else "critique"


def _decided_or(following: str) -> Any:
    async def route(state: AttemptState) -> str:
        return "critique" if state["status"] else following

    return route


async def _after_critique(state: AttemptState) -> str:
    return END if state["status"] in ENDED or state["turn"] >= state["turns"] else "generate"
