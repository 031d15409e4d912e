"""Reads a prompt: the operator, the problem, earlier candidates with their feedback.

The sampler sees what a language model sees, the text of the messages. It relies on little of the prompts'
wording: fenced blocks of Python, its own genome lines, headings that start with `## `, the words `Status:
NAME`, and a few words of each task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tools.models.base import Message
from tools.models.sampler.genome import Genome, parse_genome
from tools.models.sampler.task import Task, read_task

Operator = Literal["draft", "repair", "refine", "diversify", "crossover"]

FENCE = re.compile(r"^```[ \t]*(?:python|py)?[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
STATUS = re.compile(r"\bstatus\W{1,4}(\w+)", re.IGNORECASE)

TASKS: tuple[tuple[Operator, tuple[str, ...]], ...] = (
    ("repair", ("repair", "fix ", "corrected file")),
    ("crossover", ("join the strengths", "combine", "crossover")),
    ("diversify", ("another way", "diversify", "unlike", "different algorithm")),
    ("refine", ("make it faster", "refine", "improve", "optimise", "optimize")),
)
"""Words of a request's last paragraph that name the operator; none of them means a draft."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """An earlier candidate in the prompt. `feedback` is the text from it to the next one, lower case."""

    genome: Genome | None
    feedback: str
    beside: bool = False
    """Shown for context, not a parent."""

    @property
    def status(self) -> str:
        """Status in the feedback, lower case; empty when it names none."""
        found = STATUS.search(self.feedback)
        return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Brief:
    """What the prompt asks."""

    operator: Operator
    task: Task | None
    attempts: tuple[Attempt, ...]

    @property
    def parents(self) -> tuple[Attempt, ...]:
        """Attempts with a genome, parents before mere context."""
        known = [a for a in self.attempts if a.genome is not None]
        return tuple(a for a in known if not a.beside) or tuple(known)


def read_brief(messages: Sequence[Message]) -> Brief:
    """The brief in a conversation. The last attempt in it is the last of `attempts`."""
    text = "\n\n".join(m.content for m in messages if m.role != "system")
    blocks = [(m, m[1]) for m in FENCE.finditer(text)]
    task = next((t for _, source in blocks if "class Model(" in source and (t := read_task(source))), None)
    attempts = _attempts(text)
    dims = [int(d) for d in re.findall(r"head_dim\W{1,6}(\d{1,4})\b", text)]
    if task is not None and dims:
        task = replace(task, head_dim=max(dims))
    last = next((m.content for m in reversed(messages) if m.role == "user"), "")
    return Brief(_operator(last, bool(attempts)), task, attempts)


def _operator(text: str, tried: bool) -> Operator:
    """By the last paragraph. Bare feedback on an earlier answer asks for a repair."""
    bare = FENCE.sub("", text).strip().lower()
    asked = bare.rsplit("\n\n", 1)[-1]
    for operator, words in TASKS:
        if tried and any(w in asked for w in words):
            return operator
    return "repair" if tried and "write `modelnew`" not in asked else "draft"


def _attempts(text: str) -> tuple[Attempt, ...]:
    """Sections under a `## ` heading and further blocks with a genome line, each with its feedback."""
    sections = _sections(text)
    return tuple(_attempt(title, body) for title, body in sections if "status" in body.lower() or _genome(body))


def _sections(text: str) -> list[tuple[str, str]]:
    """(title, text) of each attempt: cut at headings outside code, and at blocks that carry a genome."""
    cuts = [(m.start(), m[0]) for m in FENCE.finditer(text)]
    inside = [(at, at + len(code)) for at, code in cuts]
    heads = [m.start() for m in re.finditer(r"^## .*$", text, re.MULTILINE) if not _within(m.start(), inside)]
    coded = [at for at, code in cuts if _genome(code) and not _headed(at, heads, inside)]
    marks = sorted({*heads, *coded})
    parts = [text[a:b] for a, b in zip(marks, [*marks, len(text)][1:], strict=True)]
    return [(part.split("\n", 1)[0].lower() if part.startswith("## ") else "", part) for part in parts]


def _headed(at: int, heads: list[int], blocks: list[tuple[int, int]]) -> bool:
    """Whether the block at `at` is the first one under its heading."""
    before = [h for h in heads if h < at]
    return bool(before) and not any(before[-1] < start < at for start, _ in blocks)


def _within(at: int, spans: list[tuple[int, int]]) -> bool:
    return any(a <= at < b for a, b in spans)


def _attempt(title: str, body: str) -> Attempt:
    feedback = FENCE.sub("", body).lower()
    return Attempt(_genome(body), feedback, beside="also" in title or "context" in title)


def _genome(text: str) -> Genome | None:
    return next((g for line in text.splitlines() if (g := parse_genome(line))), None)
