"""Chat completions as they come over the wire, whole or streamed, read without trust in their types.

Reasoning text is taken from `reasoning` (vLLM since 0.16), `reasoning_content` (DeepSeek, SGLang) and a
leading `<think>...</think>` in the content. An unclosed tag means that the answer was cut while thinking:
all of it is reasoning. A content that closes a tag which it never opened comes from a chat template that
opens it in the prompt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from tools.models.usage import StreamedUsage

OPEN, CLOSE = "<think>", "</think>"


class BadAnswer(Exception):
    """The server said 200 but sent no usable completion. Control flow inside the retry loop."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one response holds; `usage` is the server's object, unread."""

    text: str
    reasoning: str
    finish_reason: Literal["stop", "length", "other"]
    model: str
    usage: object
    doubtful_usage: bool = False


def split_thinking(content: str) -> tuple[str, str]:
    """(text, reasoning) of a content that may carry its reasoning inline."""
    body = content.lstrip()
    if body.startswith(OPEN):
        reasoning, _, text = body[len(OPEN) :].partition(CLOSE)
        return text.lstrip("\n"), reasoning.strip("\n")
    before, tag, after = content.partition(CLOSE)
    if tag and OPEN not in before:
        return after.lstrip("\n"), before.strip("\n")
    return content, ""


def parse_json(data: bytes | str) -> Any:
    """JSON or BadAnswer. NaN passes (a lying usage must be seen); absurd digits and depth do not."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadAnswer("the body is not JSON") from None


def read_body(body: object) -> Answer:
    """A whole `chat.completion` object. Raises BadAnswer."""
    choice = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadAnswer("the answer has no message")
    assert isinstance(body, dict)
    return _answer(
        _text(message.get("content")),
        _reasoning(message),
        choice.get("finish_reason"),
        body.get("model"),
        body.get("usage"),
    )


class StreamReader:
    """Server-sent events of one streamed completion: `feed` bytes as they come, then `finish`."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._usage = StreamedUsage()
        self._finish: object = None
        self._model: object = ""
        self._done = False

    def feed(self, data: bytes) -> None:
        """Takes bytes cut anywhere. Only LF ends a line: a text may hold other separators, unescaped."""
        head, newline, tail = data.rpartition(b"\n")
        self._rest.append(head)
        if newline:
            whole, self._rest = b"".join(self._rest), []
            for line in whole.split(b"\n"):
                self._line(line)
        self._rest.append(tail)

    def finish(self) -> Answer:
        """The whole answer. Raises BadAnswer where the stream ended early."""
        self._line(b"".join(self._rest))
        if self._finish is None and not self._done:
            raise BadAnswer("the stream was cut")
        content, thoughts = "".join(self._content), "".join(self._thoughts)
        answer = _answer(content, thoughts, self._finish, self._model, self._usage.raw)
        return replace(answer, doubtful_usage=self._usage.doubtful)

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self._done = True
        elif data:
            self._chunk(parse_json(data))

    def _chunk(self, chunk: object) -> None:
        _refuse_error(chunk)
        if not isinstance(chunk, dict):
            raise BadAnswer("a chunk is not an object")
        self._usage.add(chunk.get("usage"))
        self._model = chunk.get("model") or self._model
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        self._finish = choice.get("finish_reason") or self._finish
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._content.append(_text(delta.get("content")))
            self._thoughts.append(_reasoning(delta))


def _first_choice(body: object) -> dict[str, Any]:
    _refuse_error(body)
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadAnswer("the answer has no choices")
    return choices[0]


def _refuse_error(body: object) -> None:
    if isinstance(body, dict) and body.get("error") and not body.get("choices"):
        raise BadAnswer(f"the server reported {error_text(body)}")


def error_text(body: object) -> str:
    """The message of an error body in the shapes that servers use."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error, default=str)


def _text(content: object) -> str:
    """Content as a string or as a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise BadAnswer("the content is not text")
    return content


def _reasoning(message: dict[str, Any]) -> str:
    return next((v for n in ("reasoning", "reasoning_content") if isinstance(v := message.get(n), str) and v), "")


def _answer(content: str, reasoning: str, finish: object, model: object, usage: object) -> Answer:
    text, inline = split_thinking(whole_characters(content))
    thoughts = "\n".join(part for part in (whole_characters(reasoning), inline) if part)
    return Answer(text, thoughts, _finish_reason(finish), whole_characters(str(model or "")), usage)


def _finish_reason(value: object) -> Literal["stop", "length", "other"]:
    if value == "stop":
        return "stop"
    return "length" if value in ("length", "max_tokens") else "other"


def whole_characters(text: str) -> str:
    """Joins surrogate pairs that JSON escapes or chunk borders split; a lone half becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
