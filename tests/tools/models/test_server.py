"""The shipped local server: as a fake for tests and as a command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tools.models.replies import Reply
from tools.models.serve import canned, main, sampled
from tools.models.server import LocalServer
from verifier.errors import UsageError


def post(url: str, body: object) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"{url}/chat/completions", data=data), timeout=10) as response:
        return json.load(response)


def test_it_counts_and_records(serve: Any) -> None:
    server = serve([Reply("one"), Reply("two")])
    texts = [post(server.url, {"messages": [], "n": n})["choices"][0]["message"]["content"] for n in range(3)]
    assert texts == ["one", "two", "ok"]
    assert ([r.body["n"] for r in server.requests], server.count) == ([0, 1, 2], 3)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_request_is_refused_and_not_counted(serve: Any, body: bytes) -> None:
    server = serve()
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server.url, body)
    assert (caught.value.code, server.count) == (400, 0)
    caught.value.close()


def test_it_listens_on_this_machine_only(serve: Any) -> None:
    assert serve().url.startswith("http://127.0.0.1:")


def test_closing_ends_a_hang_and_leaves_no_thread() -> None:
    before = threading.active_count()
    server = LocalServer([Reply(fault="hang")])
    failed = threading.Event()

    def client() -> None:
        try:
            post(server.url, {})
        except OSError:
            failed.set()

    thread = threading.Thread(target=client)
    thread.start()
    assert server.wait_for(1)
    server.close()
    thread.join(5)
    assert failed.is_set()
    assert threading.active_count() == before


def test_canned_answers_come_in_turn(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('"one"\n\n{"text": "two", "reasoning": "why"}\n')
    script = canned(tmp_path / "answers.jsonl")
    assert [(r.text, r.reasoning) for r in (script({}) for _ in range(3))] == [
        ("one", ""),
        ("two", "why"),
        ("one", ""),
    ]
    (tmp_path / "answer.py").write_text("a\nb\n")
    assert canned(tmp_path / "answer.py")({}).text == "a\nb\n"


@pytest.mark.parametrize("text", ["", "\n", "{\n", "7\n", '{"answer": "x"}\n'])
def test_a_broken_answers_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "answers.jsonl").write_text(text)
    with pytest.raises(UsageError, match=r"answers\.jsonl"):
        canned(tmp_path / "answers.jsonl")
    assert main(["--answers", str(tmp_path / "answers.jsonl")]) == 2


def test_a_local_model_can_stand_behind_it(serve: Any) -> None:
    class Echo:
        profile = None

        async def complete(self, request: Any) -> Any:
            return Reply(text=f"{request.messages[-1].content} {request.sampling.seed}", model="echo")

    server = serve(then=sampled(Echo()))  # type: ignore[arg-type]
    answer = post(server.url, {"messages": [{"role": "user", "content": "hi"}], "seed": 7})
    assert (answer["choices"][0]["message"]["content"], answer["model"]) == ("hi 7", "echo")
    for messages in (None, [], [{"role": "tool", "content": "x"}], [{"role": "user"}]):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server.url, {"messages": messages})
        assert caught.value.code == 400
        caught.value.close()


def test_the_command_serves_until_interrupted(tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text("from a file")
    command = [
        sys.executable,
        "-m",
        "tools.models.server",
        "--port",
        "0",
        "--answers",
        str(tmp_path / "answer.txt"),
    ]
    command += ["--requests", str(tmp_path / "seen.jsonl")]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True) as child:
        signal.signal(signal.SIGINT, before)
        assert child.stdout is not None
        assert child.stderr is not None
        url = child.stdout.readline().split()[2]
        assert post(url, {"messages": []})["choices"][0]["message"]["content"] == "from a file"
        child.send_signal(signal.SIGINT)
        try:
            assert child.wait(10) == 0
        finally:
            child.kill()
        assert ("answered 1 requests" in child.stdout.read(), child.stderr.read()) == (True, "")
    assert json.loads((tmp_path / "seen.jsonl").read_text()) == {"messages": []}
