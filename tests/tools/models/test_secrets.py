"""The key goes to its server and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest

from tools.models import make_model
from tools.models.base import ModelError
from tools.models.gateway import Gateway
from tools.models.openai_compatible import OpenAICompatible
from tools.models.replies import Reply
from tools.models.retry import RetryPolicy
from tools.models.store import CompletionStore
from verifier.errors import UsageError

KEY = "sk-very-secret-0123456789abcdef"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n")


def fold(folder: Path) -> bytes:
    return b"".join(path.read_bytes() + str(path).encode() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(f"you sent {KEY}", f"I was given {KEY}", model=f"m-{KEY}"),
        Reply(status=401, error=f"Incorrect API key provided: {KEY}. " + "x" * 250 + KEY),
        Reply(status=400, error=f"{KEY} is unsupported", param=KEY),
        Reply(status=307, headers={"Location": "http://127.0.0.1:9/"}),
        Reply(raw=f"<html>{KEY}</html>".encode()),
        Reply(raw=f'{{"error": {{"message": "bad key {KEY}"}}}}'.encode()),
        Reply(raw=f'data: {{"error": "bad key {KEY}"}}\n\n'.encode(), content_type="text/event-stream"),
        Reply(fault="hang"),
        Reply(KEY, fault="cut"),
        Reply(fault="drop"),
    ],
    ids=lambda reply: str(reply.status) + reply.fault,
)
def test_the_key_appears_nowhere(
    reply: Reply,
    stream: bool,
    serve: Any,
    profile: Any,
    ask: Any,
    meter: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve([reply, reply])
    seconds = 0.3 if reply.fault == "hang" else 30.0
    given = profile(server.url, api_key_env="TEST_KEY", stream=stream, timeout_seconds=seconds)
    model = OpenAICompatible(given, retry=RetryPolicy(attempts=2, first_wait=0.01))
    seen = []
    try:
        completion = asyncio.run(Gateway(model, meter, CompletionStore(tmp_path)).complete(ask()))
        seen += [repr(completion), completion.model_dump_json()]
    except ModelError as error:
        frame = error.__traceback__
        ours = error.with_traceback(frame and frame.tb_next)  # without this frame, which knows the script
        seen += ["".join(traceback.TracebackException.from_exception(ours, capture_locals=True).format())]
        seen += [repr(error), repr(vars(error)), repr(error.__context__), repr(error.__cause__)]
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    seen += [
        repr(model),
        repr(vars(model)),
        given.model_dump_json(),
        repr(meter.settled),
        repr(meter.refunds),
    ]
    seen += [f"{record.getMessage()} {vars(record)}" for record in caplog.records] + [*capfd.readouterr()]
    assert fold(tmp_path)
    assert KEY not in "\n".join(seen)
    assert KEY.encode() not in fold(tmp_path)
    assert caplog.records


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    with pytest.raises(UsageError, match="DEEPSEEK_API_KEY"):
        make_model("deepseek")


@pytest.mark.parametrize("key", ["", "  \n", "sk-a sk-b", "sk-\u2013-dash", "sk-a\r\nX-Evil: 1"])
def test_a_key_that_is_none_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", key)
    with pytest.raises(UsageError) as caught:
        make_model("deepseek")
    assert "DEEPSEEK_API_KEY" in str(caught.value)
    assert not key.strip() or key.strip() not in f"{caught.value}{caught.value.next_step}"


def test_a_key_in_the_wrong_place_is_refused_without_showing_it(tmp_path: Path) -> None:
    for line in (
        f'api_key = "{KEY}"',
        f'key = "{KEY}"',
        f'base_url = "https://u:{KEY}@host/v1"',
        f'max_tokens = "{KEY}"',
    ):
        (tmp_path / "models.toml").write_text(f'[mine]\nmodel = "m"\n{line}\n')
        with pytest.raises(UsageError) as caught:
            make_model("mine", models_file=tmp_path / "models.toml")
        shown = "".join(traceback.TracebackException.from_exception(caught.value).format())
        assert KEY not in shown
        assert "mine" in str(caught.value)
