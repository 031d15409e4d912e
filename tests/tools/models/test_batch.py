from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.metering import Usage
from tools.models.base import AnswerPending, ModelProfile, ModelRequest, Prices
from tools.models.batch import Batch, custom_id
from tools.models.gateway import Gateway
from tools.models.store import CompletionStore
from verifier.errors import UsageError

Ask = Callable[..., ModelRequest]


def make(folder: Path) -> Batch:
    return Batch(ModelProfile(name="hand", model="m", prices=Prices(output=10.0), stream=True), folder)


def wait_for(batch: Batch, *requests: ModelRequest) -> None:
    for request in requests:
        with pytest.raises(AnswerPending):
            asyncio.run(batch.complete(request))


def line(request: ModelRequest | str, text: str = "answer", **fields: object) -> str:
    name = request if isinstance(request, str) else custom_id(request)
    usage = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
    body = {
        "model": "served",
        "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}],
    }
    response = {"status_code": 200, "request_id": "r", "body": {**body, "usage": usage}}
    return json.dumps({"id": "b", "custom_id": name, "response": response, "error": None, **fields})


def results(folder: Path, *lines: str) -> Path:
    path = folder / "results.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def two(ask: Ask) -> tuple[ModelRequest, ModelRequest]:
    return ask("a0001/1", "First 'ünï 🙂'\n\u2028", temperature=0.5), ask("a0002/1", "Second")


def test_requests_are_written_in_the_batch_format(tmp_path: Path, two: Any) -> None:
    batch = make(tmp_path)
    wait_for(batch, *two, two[0])
    lines = [json.loads(line) for line in batch.write_requests().read_bytes().split(b"\n")[:-1]]
    assert [line["custom_id"] for line in lines] == [custom_id(request) for request in two]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    assert lines[0]["body"] == {
        "model": "m",
        "messages": [message.model_dump() for message in two[0].messages],
        "temperature": 0.5,
        "max_tokens": 1000,
    }
    assert lines[0].keys() == {"custom_id", "method", "url", "body"}


def test_answers_come_in_any_order_and_usage_is_charged(tmp_path: Path, two: Any, meter: Any) -> None:
    batch = make(tmp_path)
    gateway = Gateway(batch, meter, CompletionStore(tmp_path))
    for request in two:
        with pytest.raises(AnswerPending):
            asyncio.run(gateway.complete(request))
    report = batch.read_answers(results(tmp_path, line(two[1], "B"), "", line(two[0], "<think>why</think>A")))
    assert (report.accepted, report.waiting) == ((custom_id(two[1]), custom_id(two[0])), ())
    first, second = (asyncio.run(gateway.complete(request)) for request in two)
    assert (first.text, first.reasoning, first.model, second.text) == ("A", "why", "served", "B")
    assert first.usage == Usage(uncached=20, output=30)
    assert [c.dollars for c in meter.settled.values()] == [pytest.approx(3e-4)] * 2
    assert (meter.held, batch.write_requests().read_bytes()) == ({}, b"")


def test_a_partial_file_leaves_the_rest_waiting(tmp_path: Path, two: Any) -> None:
    batch = make(tmp_path)
    wait_for(batch, *two)
    report = batch.read_answers(results(tmp_path, line(two[0])))
    assert report.waiting == (custom_id(two[1]),)
    assert custom_id(two[1]) in batch.write_requests().read_text()
    assert asyncio.run(batch.complete(two[0])).text == "answer"
    wait_for(batch, two[1])


def test_the_first_of_two_answers_stands(tmp_path: Path, two: Any) -> None:
    batch = make(tmp_path)
    wait_for(batch, two[0])
    path = results(tmp_path, line(two[0], "A"), line(two[0], "A"), line(two[0], "other"))
    report, name = batch.read_answers(path), custom_id(two[0])
    assert (report.accepted, report.repeated, report.conflicting) == ((name,), (name,), (name,))
    again = batch.read_answers(path)
    assert (again.accepted, again.repeated, again.conflicting) == ((), (name, name), (name,))
    assert asyncio.run(batch.complete(two[0])).text == "A"


def test_answers_to_what_was_not_asked_are_ignored(tmp_path: Path, two: Any, ask: Ask) -> None:
    batch = make(tmp_path)
    wait_for(batch, two[0])
    stale = custom_id(ask("a0001/1", "An earlier prompt"))
    report = batch.read_answers(results(tmp_path, line(stale), line(two[1]), line("../../evil"), line("\ud800")))
    assert (report.accepted, len(report.unknown), report.waiting) == ((), 4, (custom_id(two[0]),))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["batch", "results.jsonl"]


FAILURES: list[dict[str, object]] = [
    {"response": None, "error": {"code": "batch_expired", "message": "it expired"}},
    {"response": None},
    {"response": {"status_code": 400, "body": {"error": {"message": "too long"}}}},
    {"response": {"status_code": 500, "body": None}},
    {"response": {"status_code": "200", "body": {}}},
    {"response": {"status_code": 200, "body": {"choices": []}}},
    {"response": {"status_code": 200, "body": None}},
    {"response": 7},
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_a_failed_request_is_reported_and_asked_again(tmp_path: Path, two: Any, failure: dict[str, object]) -> None:
    batch = make(tmp_path)
    wait_for(batch, two[0])
    report = batch.read_answers(results(tmp_path, line(two[0], **failure)))
    assert (report.accepted, list(report.failed), report.waiting) == (
        (),
        [custom_id(two[0])],
        (custom_id(two[0]),),
    )
    assert report.failed[custom_id(two[0])]
    assert custom_id(two[0]) in batch.write_requests().read_text()
    later = batch.read_answers(results(tmp_path, line(two[0], **failure), line(two[0], "at last")))
    assert (len(later.accepted), later.failed) == (1, {})


def test_bad_lines_are_numbered_and_the_good_ones_count(tmp_path: Path, two: Any) -> None:
    batch = make(tmp_path)
    wait_for(batch, two[0])
    path = tmp_path / "results.jsonl"
    good = line(two[0]).encode()
    bad = [b'{"custom_id": ', b"[]", b"\xff\xfe", b'{"custom_id": 7}', b"[" * 100_000, b"null"]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*bad, b"", good[: len(good) // 2], good]))
    report = batch.read_answers(path)
    assert [bad.line for bad in report.bad_lines] == [1, 2, 3, 4, 5, 6, 8]
    assert report.accepted == (custom_id(two[0]),)


@pytest.mark.parametrize("usage", [None, "x", {"prompt_tokens": -1, "completion_tokens": 10**20}, {}])
def test_usage_that_is_missing_or_false_is_estimated(tmp_path: Path, two: Any, usage: object) -> None:
    batch = make(tmp_path)
    wait_for(batch, two[0])
    value = json.loads(line(two[0], "x" * 400))
    value["response"]["body"]["usage"] = usage
    batch.read_answers(results(tmp_path, json.dumps(value)))
    completion = asyncio.run(batch.complete(two[0]))
    assert (completion.usage.output, completion.usage.estimated) == (100, True)


def test_one_request_can_be_read_and_answered_by_hand(tmp_path: Path, two: Any) -> None:
    batch = make(tmp_path)
    wait_for(batch, *two)
    shown = batch.show("a0001/1")
    assert all(part in shown for part in ("a0001/1", "First 'ünï 🙂'", "You write kernels.", "## user"))
    completion = batch.answer("a0001/1", "<think>hm</think>by hand")
    assert (completion.text, completion.reasoning, completion.usage.estimated) == ("by hand", "hm", True)
    assert asyncio.run(batch.complete(two[0])) == completion
    with pytest.raises(UsageError, match="already"):
        batch.answer(custom_id(two[0]), "again")
    with pytest.raises(UsageError, match="a0002/1"):
        batch.show("a0009/1")


def test_an_id_that_was_asked_twice_means_the_open_one(tmp_path: Path, ask: Ask) -> None:
    batch = make(tmp_path)
    old, new = ask(prompt="old"), ask(prompt="new")
    wait_for(batch, old, new)
    with pytest.raises(UsageError, match=custom_id(new)):
        batch.answer("a0001/1", "which?")
    batch.answer(custom_id(old), "old answer")
    assert batch.answer("a0001/1", "new answer") == asyncio.run(batch.complete(new))


def test_two_machines_take_turns_on_one_folder(tmp_path: Path, two: Any) -> None:
    wait_for(make(tmp_path / "gpu" / "run"), *two)
    make(tmp_path / "gpu" / "run").write_requests()
    shutil.move(tmp_path / "gpu" / "run", tmp_path / "there")
    elsewhere = make(tmp_path / "there")
    asked = [json.loads(text) for text in (tmp_path / "there" / "requests.jsonl").read_text().splitlines()]
    answers = (line(item["custom_id"], f"to {item['custom_id']}") for item in asked)
    assert len(elsewhere.read_answers(results(tmp_path, *answers)).accepted) == 2
    shutil.move(tmp_path / "there", tmp_path / "back")
    assert asyncio.run(make(tmp_path / "back").complete(two[1])).text == f"to {custom_id(two[1])}"
    files = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


def test_a_results_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jsonl"):
        make(tmp_path).read_answers(tmp_path / "none.jsonl")
