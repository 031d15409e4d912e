"""From a completion to a candidate: the last complete fenced code block, as CommonMark reads fences.

A fence opens with three or more backticks or tildes, indented by at most three spaces, and closes with at
least as many of the same character and nothing after them. So a block inside a longer or another fence is
text, and a block that the model did not finish is no block. A fence that opens inside an unfinished block is
taken as a new block: models restart. What a model thinks aloud (`<think>`, also with one of its tags missing)
is left out first. Blocks tagged as another language (text, bash, json) are not code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^\n]*)$")
_CLASS = re.compile(r"^class[ \t]+ModelNew\b", re.MULTILINE)
_THINK = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)|\A.*?</think>|<think>.*?</think>", re.DOTALL)
_LANGUAGES = frozenset({"", "python", "py", "python3", "triton"})


@dataclass(frozen=True, slots=True)
class Parsed:
    """`source` is the candidate's text ending in one newline; None when `problem` says why there is none."""

    source: str | None
    problem: str = ""


def parse(completion: str) -> Parsed:
    """The candidate in a completion. Never raises."""
    text = _THINK.sub("", completion.replace("\r\n", "\n").replace("\r", "\n"))
    blocks, unfinished = _blocks(text)
    if not blocks:
        reason = "its code block is not closed" if unfinished else "it has no fenced python code block"
        return Parsed(None, f"The reply cannot be used: {reason}.")
    source = blocks[-1].strip("\n") + "\n"
    if not _CLASS.search(source):
        return Parsed(None, "The last complete code block of the reply defines no class ModelNew.")
    return Parsed(source)


def _blocks(text: str) -> tuple[list[str], bool]:
    """Complete python blocks in order, and whether a block stayed open at the end."""
    blocks: list[str] = []
    mark, info, body = "", "", [""]
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if fence is None:
            body.append(line)
        elif not mark:
            if "`" not in fence["info"]:
                mark, info, body = fence["mark"], fence["info"], []
        elif fence["mark"].startswith(mark) and not fence["info"].strip():
            if info.strip().split(" ")[0].lower() in _LANGUAGES:
                blocks.append("\n".join(body))
            mark = ""
        elif fence["mark"][0] == mark[0] and len(fence["mark"]) == len(mark) and fence["info"].strip():
            info, body = fence["info"], []
        else:
            body.append(line)
    return blocks, bool(mark)
