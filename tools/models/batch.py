"""Answers by file or by hand: requests go out in OpenAI's batch format, which vLLM's `run-batch` reads too.

    complete        raises AnswerPending and keeps the request in batch/, until its answer is in the store
    write_requests  writes requests.jsonl: one line for each request that has no answer
    read_answers    takes a results file, in any order, whole or partial
    show, answer    one request as text, one answer written by hand

A `custom_id` is `ID:DIGEST`, so an answer of another run, or to a prompt that has changed since, is unknown
here instead of wrong. All files are under the run folder, replaced whole and hold no path, so that two
machines can take turns on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from tools.models.answer import (
    Answer,
    BadAnswer,
    error_text,
    parse_json,
    read_body,
    split_thinking,
    whole_characters,
)
from tools.models.base import AnswerPending, Completion, ModelProfile, ModelRequest
from tools.models.body import Quirks, request_body
from tools.models.store import CompletionStore, file_name, read_record, write_record, write_synced
from tools.models.usage import Seen, estimated_usage, read_usage, utf8_bytes
from verifier.errors import UsageError
from verifier.verdict import Record


class BadLine(Record):
    """A line of a results file that is no answer. `line` is 1-based."""

    line: int
    reason: str


class BatchReport(Record):
    """What `read_answers` made of a file. Ids are custom ids, in the file's order."""

    accepted: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    """Answered before with the same text; ignored."""
    conflicting: tuple[str, ...] = ()
    """Answered before with another text; the first answer stands."""
    unknown: tuple[str, ...] = ()
    """Not asked by this run, or asked with another prompt; ignored."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Why there is no answer. The request stays open and is written again."""
    bad_lines: tuple[BadLine, ...] = ()
    waiting: tuple[str, ...] = ()
    """Requests that still have no answer."""


class Waiting(Record):
    """A request on disk. `failed` says how its last try ended."""

    request: ModelRequest
    failed: str = ""


class Batch:
    """A `Model` that never sends anything. `folder` is the run folder that the gateway's store uses too."""

    def __init__(self, profile: ModelProfile, folder: Path) -> None:
        self.profile = profile.model_copy(update={"remote": False, "stream": False})
        self.folder = folder
        self.store = CompletionStore(folder)

    async def complete(self, request: ModelRequest) -> Completion:
        """The answer, or AnswerPending after the request was written down."""
        stored = self.store.get(request)
        if stored is not None:
            return stored.completion
        if not self._path(request).exists():
            write_record(self._path(request), Waiting(request=request))
        raise AnswerPending(request)

    def waiting(self) -> tuple[ModelRequest, ...]:
        """Requests without an answer, by id."""
        return tuple(w.request for w in self._asked() if self.store.get(w.request) is None)

    def write_requests(self, folder: Path | None = None) -> Path:
        """Writes requests.jsonl, in ASCII, into `folder` (the run folder by default) and returns its path."""
        path = (folder or self.folder) / "requests.jsonl"
        lines = [json.dumps(self._line(request)) + "\n" for request in self.waiting()]
        write_synced(path, "".join(lines).encode())
        return path

    def read_answers(self, path: Path) -> BatchReport:
        """Stores the answers of a results file. Raises UsageError when it cannot be read."""
        try:
            lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        except OSError as error:
            raise UsageError(f"the answers file {path} cannot be read: {error.strerror}") from None
        reader = _Reader(self)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                reader.read(number, line)
        return reader.report()

    def show(self, request_id: str) -> str:
        """One request as readable text, by its id or custom id. Raises UsageError for an unknown one."""
        request = self._find(request_id)
        parts = [f"# {custom_id(request)}", f"model: {self.profile.model}", f"sampling: {request.sampling!r}"]
        parts += [f"\n## {message.role}\n\n{message.content}" for message in request.messages]
        return "\n".join(parts) + "\n"

    def answer(self, request_id: str, text: str) -> Completion:
        """Stores an answer written by hand; usage is estimated. Raises UsageError where one is there."""
        request = self._find(request_id)
        if self.store.get(request) is not None:
            raise UsageError(f"{custom_id(request)} has an answer already; the first one stands")
        content, reasoning = split_thinking(whole_characters(text))
        completion = self.completion(request, Answer(content, reasoning, "stop", "", None))
        self.store.put_outside(request, completion)
        return completion

    def completion(self, request: ModelRequest, answer: Answer) -> Completion:
        seen = Seen(utf8_bytes(*(m.content for m in request.messages)), utf8_bytes(answer.text, answer.reasoning))
        return Completion(
            request=request.id,
            text=answer.text,
            reasoning=answer.reasoning,
            usage=estimated_usage(seen) if answer.usage is None else read_usage(answer.usage, seen),
            finish_reason=answer.finish_reason,
            model=answer.model or self.profile.model or self.profile.name,
        )

    def note_failure(self, request: ModelRequest, reason: str) -> None:
        write_record(self._path(request), Waiting(request=request, failed=reason))

    def known(self) -> dict[str, ModelRequest]:
        """Every request that this run has asked, by custom id."""
        return {custom_id(w.request): w.request for w in self._asked()}

    def _asked(self) -> tuple[Waiting, ...]:
        records = (read_record(path, Waiting) for path in sorted((self.folder / "batch").glob("*.json")))
        return tuple(record for record in records if record is not None)

    def _path(self, request: ModelRequest) -> Path:
        return self.folder / "batch" / f"{file_name(request)}.json"

    def _line(self, request: ModelRequest) -> dict[str, Any]:
        body = request_body(self.profile, request, Quirks.of(self.profile))
        return {
            "custom_id": custom_id(request),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }

    def _find(self, request_id: str) -> ModelRequest:
        """By custom id, or by an id that was asked once; among several, the one that still waits."""
        known = self.known()
        if request_id in known:
            return known[request_id]
        same = [r for r in known.values() if r.id == request_id]
        open_ = [r for r in same if self.store.get(r) is None]
        found = open_ or same
        if len(found) == 1:
            return found[0]
        names = ", ".join(custom_id(r) for r in found or self.waiting()) or "none"
        why = "is not one request" if found else "is no request of this run"
        raise UsageError(f"{request_id} {why}; choose from: {names}")


class _Reader:
    """Goes through the lines of one results file and collects the report."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._known = batch.known()
        self._accepted: list[str] = []
        self._repeated: list[str] = []
        self._conflicting: list[str] = []
        self._unknown: list[str] = []
        self._failed: dict[str, str] = {}
        self._bad: list[BadLine] = []

    def read(self, number: int, line: bytes) -> None:
        try:
            result = parse_json(line)
        except BadAnswer:
            return self._bad.append(BadLine(line=number, reason="it is not JSON"))
        name = result.get("custom_id") if isinstance(result, dict) else None
        if not isinstance(name, str):
            return self._bad.append(BadLine(line=number, reason="it has no custom_id"))
        name = whole_characters(name)
        if name not in self._known:
            return self._unknown.append(name)
        try:
            self._take(name, read_result(result))
        except BadAnswer as error:
            self._fail(name, str(error))

    def report(self) -> BatchReport:
        return BatchReport(
            accepted=tuple(self._accepted),
            repeated=tuple(self._repeated),
            conflicting=tuple(self._conflicting),
            unknown=tuple(self._unknown),
            failed=self._failed,
            bad_lines=tuple(self._bad),
            waiting=tuple(custom_id(request) for request in self._batch.waiting()),
        )

    def _take(self, name: str, answer: Answer) -> None:
        request = self._known[name]
        stored = self._batch.store.get(request)
        if stored is None:
            self._batch.store.put_outside(request, self._batch.completion(request, answer))
            self._accepted.append(name)
            self._failed.pop(name, None)
        elif (stored.completion.text, stored.completion.reasoning) == (answer.text, answer.reasoning):
            self._repeated.append(name)
        else:
            self._conflicting.append(name)

    def _fail(self, name: str, reason: str) -> None:
        """A failure counts while there is no answer, from this file or an earlier one."""
        request = self._known[name]
        if self._batch.store.get(request) is None:
            self._batch.note_failure(request, reason)
            self._failed[name] = reason


def custom_id(request: ModelRequest) -> str:
    return f"{request.id}:{request.digest}"


def read_result(result: dict[str, Any]) -> Answer:
    """The answer in one line of a results file. Raises BadAnswer with the reason of a failed request."""
    if result.get("error"):
        raise BadAnswer(error_text({"error": result["error"]})[:300])
    response = result.get("response")
    if not isinstance(response, dict):
        raise BadAnswer("the line has no response")
    status = response.get("status_code", 200)
    if status != 200:
        raise BadAnswer(f"status {status}: {error_text(response.get('body'))}"[:300])
    return read_body(response.get("body"))
