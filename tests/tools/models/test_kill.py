"""SIGKILL at the moments that matter: what was received is kept, what was sent is known."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.models.gateway import Gateway
from tools.models.openai_compatible import OpenAICompatible
from tools.models.replies import Reply
from tools.models.store import CompletionStore

VICTIM = """
import asyncio, sys, time
from pathlib import Path
from tools.models.base import Message, ModelProfile, ModelRequest, Sampling
from tools.models.gateway import Gateway
from tools.models.openai_compatible import OpenAICompatible
from tools.models.store import CompletionStore

class Meter:
    def reserve(self, key, bound):
        self._reach("reserve")
    def settle(self, key, actual):
        self._reach("settle")
    def refund(self, key, reason):
        self._reach("refund")
    def _reach(self, moment):
        if moment == sys.argv[3]:
            print(moment, flush=True)
            time.sleep(60)

request = ModelRequest.model_validate_json(sys.argv[4])
model = OpenAICompatible(ModelProfile.model_validate_json(sys.argv[2]))
asyncio.run(Gateway(model, Meter(), CompletionStore(Path(sys.argv[1]))).complete(request))
"""
ROOT = Path(__file__).parents[3]


def run_until(moment: str, folder: Path, profile: Any, request: Any, server: Any) -> None:
    """Runs one call in a child and kills it at the moment: reserve, sent or settle."""
    command = [
        sys.executable,
        "-c",
        VICTIM,
        str(folder),
        profile.model_dump_json(),
        moment,
        request.model_dump_json(),
    ]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            if moment == "sent":
                assert server.wait_for(1, 30)
            else:
                assert child.stdout.readline() == f"{moment}\n".encode()
        finally:
            child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("moment", "requests", "state", "again"),
    [("reserve", 0, [], 1), ("sent", 1, ["sent"], 2), ("settle", 1, ["answered"], 1)],
)
def test_killed_at(
    moment: str,
    requests: int,
    state: list[str],
    again: int,
    serve: Any,
    profile: Any,
    ask: Any,
    meter: Any,
    tmp_path: Path,
) -> None:
    server = serve([Reply(fault="hang")] if moment == "sent" else [])
    given = profile(server.url, timeout_seconds=30.0)
    run_until(moment, tmp_path, given, ask(), server)
    store = CompletionStore(tmp_path)
    assert server.count == requests
    assert [d.state for d in store.dispatches()] == state
    lost = store.sent_unanswered()
    assert [d.bound.usage.output for d in lost] == [1000] * (moment == "sent")
    for dispatch in lost:
        store.mark_lost(dispatch)
    completion = asyncio.run(Gateway(OpenAICompatible(given), meter, store).complete(ask()))
    assert (completion.text, server.count) == ("ok", again)
    assert store.sent_unanswered() == ()
    answered = [d for d in store.dispatches() if d.state == "answered"]
    assert [d.actual is not None for d in answered] == [True]
    assert list(meter.settled) == ([] if moment == "settle" else [answered[0].key])
