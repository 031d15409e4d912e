from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tools.models.base import ModelError
from tools.models.gateway import Gateway
from tools.models.openai_compatible import OpenAICompatible
from tools.models.replay import Replay
from tools.models.replies import Reply
from tools.models.store import CompletionStore
from verifier.errors import UsageError


def test_a_recorded_run_answers_again(tmp_path: Path, serve: Any, profile: Any, ask: Any, new_meter: Any) -> None:
    server = serve([Reply("one", "why"), Reply("two", finish_reason="length", usage=None)])
    requests, first, second = [ask("a0001/1"), ask("a0002/1")], new_meter(), new_meter()
    recorder = Gateway(OpenAICompatible(profile(server.url)), first, CompletionStore(tmp_path / "one"))
    recorded = [asyncio.run(recorder.complete(request)) for request in requests]
    replayer = Gateway(Replay(tmp_path / "one"), second, CompletionStore(tmp_path / "two"))
    assert [asyncio.run(replayer.complete(request)) for request in reversed(requests)] == recorded[::-1]
    assert first.settled == second.settled
    assert server.count == 2
    third = Gateway(Replay(tmp_path / "two"), new_meter(), CompletionStore(tmp_path / "three"))
    assert asyncio.run(third.complete(requests[0])) == recorded[0]


def test_what_is_not_recorded_is_named(tmp_path: Path, serve: Any, profile: Any, ask: Any, meter: Any) -> None:
    recorder = Gateway(OpenAICompatible(profile(serve().url)), meter, CompletionStore(tmp_path))
    asyncio.run(recorder.complete(ask()))
    replay = Replay(tmp_path)
    for request, said in ((ask("a0009/1"), "a0009/1"), (ask(prompt="else"), "another question")):
        with pytest.raises(ModelError, match=said):
            asyncio.run(replay.complete(request))
    assert (replay.profile.remote, replay.profile.base_url, replay.profile.is_language_model) == (
        False,
        "",
        True,
    )


def test_a_folder_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recorded completions"):
        Replay(tmp_path)
