"""What the local server says: scripted replies and their JSON, whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.models.usage import estimate_tokens, utf8_bytes

HONEST = "honest"
"""`Reply.usage` of a server that counts right (here: by bytes)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer. Every field has the default of a healthy server."""

    text: str = "ok"
    reasoning: str = ""
    reasoning_in: Literal["reasoning", "reasoning_content", "think", "template"] = "reasoning_content"
    """Where the reasoning goes; "template": in the content, closed by a tag that was opened in the prompt."""
    finish_reason: str | None = "stop"
    model: str = ""
    """"" echoes the model that was asked for."""
    usage: object = HONEST
    """HONEST, None for a server that does not count, or any JSON value as it is."""
    usages: tuple[object, ...] | None = None
    """Streamed only: usage of each of the last chunks, instead of one chunk after the text."""
    usage_with_text: bool = False
    """Streamed only: usage beside the finish reason, not in a chunk of its own."""
    piece: int = 5
    """Characters in a streamed chunk."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = "the server has a bad day"
    param: str | None = None
    code: str | None = None
    raw: bytes | None = None
    """The whole body as it is, in place of all of the above but status and headers."""
    content_type: str = "application/json"
    """Of `raw`."""
    fault: Literal["", "hang", "drop", "cut", "end", "stall"] = ""
    """hang: no answer. drop: the connection is closed at once. cut: it breaks in the middle. end: the stream
    ends early but properly. stall: the stream stops in the middle and stays open."""
    hang_seconds: float = 60.0


def error_body(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error", "param": param, "code": code}}


def completion_body(reply: Reply, body: dict[str, Any]) -> dict[str, Any]:
    """A `chat.completion` object."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", **_parts(reply)},
        "finish_reason": reply.finish_reason,
    }
    usage = _usage(reply, body)
    return {**_frame(reply, body, "chat.completion"), "choices": [choice]} | ({} if usage is None else {"usage": usage})


def stream_events(reply: Reply, body: dict[str, Any]) -> list[bytes]:
    """Server-sent events: reasoning, text, finish reason, usage where it was asked for, and the end mark."""
    parts = _parts(reply)
    frame = _frame(reply, body, "chat.completion.chunk")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for name in sorted(parts, key=lambda name: name == "content"):
        text = parts[name]
        deltas += [{name: text[i : i + reply.piece]} for i in range(0, len(text), reply.piece)]
    chunks = [{**frame, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    chunks.append({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}]})
    asked = bool((body.get("stream_options") or {}).get("include_usage"))
    usage = _usage(reply, body) if asked else None
    if reply.usages is not None:
        chunks += [{**frame, "choices": [], "usage": said} for said in reply.usages]
    elif usage is not None and reply.usage_with_text:
        chunks[-1]["usage"] = usage
    elif usage is not None:
        chunks.append({**frame, "choices": [], "usage": usage})
    return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks] + [b"data: [DONE]\n\n"]


def _frame(reply: Reply, body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-local",
        "object": kind,
        "created": 0,
        "model": reply.model or body.get("model", "canned"),
    }


def _parts(reply: Reply) -> dict[str, str]:
    if not reply.reasoning:
        return {"content": reply.text}
    if reply.reasoning_in == "think":
        return {"content": f"<think>{reply.reasoning}</think>\n\n{reply.text}"}
    if reply.reasoning_in == "template":
        return {"content": f"{reply.reasoning}</think>\n\n{reply.text}"}
    return {"content": reply.text, reply.reasoning_in: reply.reasoning}


def _usage(reply: Reply, body: dict[str, Any]) -> object:
    if reply.usage != HONEST:
        return reply.usage
    messages = [m.get("content") for m in body.get("messages", []) if isinstance(m, dict)]
    prompt = estimate_tokens(utf8_bytes(*(text for text in messages if isinstance(text, str))))
    reasoning = estimate_tokens(utf8_bytes(reply.reasoning))
    output = reasoning + estimate_tokens(utf8_bytes(reply.text))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
