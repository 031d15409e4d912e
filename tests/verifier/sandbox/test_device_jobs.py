"""Jobs of a server for a device: they are handed descriptors, end when asked, build native code and see no more."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifier.sandbox.limits import Limits
from verifier.sandbox.zygote import Zygote

HERE = Path(__file__).parent
FREE = Limits(wall_seconds=120, processes=256, map_freely=True)


@pytest.fixture(scope="module")
def device_zygote() -> Iterator[Zygote]:
    with Zygote(preload=(), paths=[HERE], device=True) as running:
        yield running


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_native_code_is_built_and_loaded(device_zygote: Zygote) -> None:
    result = device_zygote.run("builds:build", None, limits=FREE)
    assert result.outcome == "ok", f"{result.error} {result.output}"
    assert result.value == {"answer": 42, "libraries": True}


def test_a_job_speaks_over_what_it_was_passed_until_it_is_ended(device_zygote: Zygote) -> None:
    ours, theirs = socket.socketpair()
    until, stop = os.pipe()
    found: list[str] = []

    def run() -> None:
        result = device_zygote.run("builds:echo", None, limits=FREE, passed=[theirs.fileno()], until=until)
        found.append(result.error)

    thread = threading.Thread(target=run)
    thread.start()
    ours.settimeout(60)
    ours.send(b"hello")
    assert ours.recv(5) == b"HELLO"
    os.write(stop, b"e")
    thread.join()
    assert "no longer needed" in found[0]
    for end in (ours, theirs):
        end.close()
    for fd in (until, stop):
        os.close(fd)


def test_names_of_threads_are_all_that_it_writes_in_proc(device_zygote: Zygote) -> None:
    """CUDA names its threads there, and does not start where it cannot."""
    result = device_zygote.run("builds:name_thread", None, limits=FREE)
    assert result.value == {"name": "renamed", "memory": "refused", "oom": "refused"}, result.error


def test_files_of_others_stay_closed(device_zygote: Zygote, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    said = device_zygote.run("attacks:read", [str(secret), "/etc/passwd", "/root"], limits=FREE).value
    assert all(text.startswith("refused") for text in said.values()), said
