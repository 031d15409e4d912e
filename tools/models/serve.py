"""The command behind `python -m tools.models.server`: what the local server answers when a person starts it.

With --answers FILE: its answers in turn, over and over. A `.jsonl` file has one JSON string or {"text",
"reasoning"} object on each line; any other file is one answer. Without: the template sampler answers, which
is no language model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tools.models import make_model
from tools.models.base import Model, ModelRequest
from tools.models.replies import Reply
from tools.models.server import LocalServer, Script
from verifier.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until interrupted. Returns the exit code: 2 for a wrong file or a taken port."""
    args = _parser().parse_args(argv)
    try:
        script = canned(args.answers) if args.answers else sampled(make_model("sampler"))
        server = LocalServer(then=_written_down(script, args.requests) if args.requests else script, port=args.port)
    except (UsageError, OSError) as error:
        print(f"error: {error}")
        return 2
    with server:
        try:
            print(f"listening on {server.url} (ctrl-c ends it)", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            print(f"answered {server.count} requests")
    return 0


def canned(path: Path) -> Script:
    """The answers of a file in turn. Raises UsageError when it holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the answers file {path} cannot be read: {error}") from None
    lines = [line for line in text.splitlines() if line.strip()]
    replies = [_reply(path, n, line) for n, line in enumerate(lines, 1)] if path.suffix == ".jsonl" else [Reply(text)]
    if not replies:
        raise UsageError(f"the answers file {path} is empty")
    turns = cycle(replies)
    return lambda body: next(turns)


def sampled(model: Model) -> Script:
    """Answers made by a local model from the messages and sampling parameters of the request."""
    numbers = iter(range(1 << 62))

    def reply(body: dict[str, Any]) -> Reply:
        known = {n: body[n] for n in ("temperature", "top_p", "seed") if body.get(n) is not None}
        asked = {"id": f"http/{next(numbers)}", "messages": body.get("messages"), "sampling": known}
        try:
            request = ModelRequest.model_validate(asked)
        except ValidationError as error:
            return Reply(status=400, error=str(error.errors()[0]["msg"]))
        completion = asyncio.run(model.complete(request))
        return Reply(completion.text, completion.reasoning, model=completion.model)

    return reply


def _reply(path: Path, number: int, line: str) -> Reply:
    try:
        value = json.loads(line)
    except ValueError:
        raise UsageError(f"{path}:{number}: it is not JSON") from None
    if isinstance(value, str):
        return Reply(value)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return Reply(value["text"], str(value.get("reasoning", "")))
    raise UsageError(f"{path}:{number}: an answer is a JSON string or an object with a text")


def _written_down(script: Script, path: Path) -> Script:
    """Appends each request body to a file before it is answered."""

    def reply(body: dict[str, Any]) -> Reply:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(body) + "\n")
        return script(body)

    return reply


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.models.server", description="A local chat completions server."
    )
    parser.add_argument("--port", type=int, default=8765, help="port on 127.0.0.1 (default 8765)")
    parser.add_argument("--answers", type=Path, help="answers to give in turn; without it the template sampler answers")
    parser.add_argument("--requests", type=Path, help="file to append the request bodies to")
    return parser
