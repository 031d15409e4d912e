from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.metering import Charge, Usage
from tools.models.base import Completion, Message, ModelProfile, ModelRequest
from tools.models.store import CompletionStore, Dispatch, Stored, file_name, write_synced
from verifier.errors import StorageError


def stored(request: ModelRequest, text: str = "answer", key: str = "k#1") -> Stored:
    completion = Completion(request=request.id, text=text, usage=Usage(output=3), model="m")
    return Stored(request=request.id, digest=request.digest, completion=completion, key=key, actual=Charge(calls=1))


def dispatch(request: ModelRequest, number: int = 1, state: str = "sent") -> Dispatch:
    fields = {
        "key": f"{request.id}#{number}",
        "request": request.id,
        "digest": request.digest,
        "state": state,
    }
    return Dispatch.model_validate({**fields, "bound": Charge(calls=1)})


def test_an_answer_comes_back_from_another_store(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    CompletionStore(tmp_path / "run").put(ask(), stored(ask(), "ünï 🙂\x00\u2028"))
    again = CompletionStore(tmp_path / "run").get(ask())
    assert again == stored(ask(), "ünï 🙂\x00\u2028")


def test_an_answer_belongs_to_a_question(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    store = CompletionStore(tmp_path)
    store.put(ask(), stored(ask()))
    assert store.get(ask(prompt="Something else.")) is None
    assert store.get(ask("a0002/1")) is None
    assert [found.digest for found in store.find("a0001/1")] == [ask().digest]


def test_reading_makes_nothing(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    store = CompletionStore(tmp_path / "run")
    assert (store.get(ask()), store.dispatches(), store.profile()) == (None, (), None)
    assert not (tmp_path / "run").exists()


def test_what_was_sent_and_not_answered(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    store = CompletionStore(tmp_path)
    for name, state in (("a/1", "sent"), ("a/2", "failed"), ("a/3", "waiting"), ("a/4", "sent")):
        store.mark(ask(name), dispatch(ask(name), state=state))
    store.put(ask("a/4"), stored(ask("a/4"), key="a/4#1"))
    assert store.sent_unanswered() == (dispatch(ask("a/1")),)
    assert {d.key: d.state for d in store.dispatches()} == {
        "a/1#1": "sent",
        "a/2#1": "failed",
        "a/3#1": "waiting",
        "a/4#1": "answered",
    }


def test_a_lost_dispatch_is_closed_once(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    store = CompletionStore(tmp_path)
    store.mark(ask(), dispatch(ask(), 1))
    (lost,) = store.sent_unanswered()
    store.mark_lost(lost)
    store.mark_lost(lost)
    store.mark(ask(), dispatch(ask(), 2))
    assert [(d.key, d.state) for d in store.log(ask())] == [("a0001/1#1", "lost"), ("a0001/1#2", "sent")]


def test_the_first_profile_stands(tmp_path: Path, profile: Callable[..., ModelProfile]) -> None:
    store = CompletionStore(tmp_path)
    store.keep_profile(profile("http://one/v1"))
    store.keep_profile(profile("http://two/v1"))
    assert store.profile() == profile("http://one/v1")


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"\x00" * 50])
def test_a_damaged_file_is_named(tmp_path: Path, ask: Callable[..., ModelRequest], damage: bytes) -> None:
    store = CompletionStore(tmp_path)
    store.put(ask(), stored(ask()))
    (path,) = (tmp_path / "completions").glob("*.json")
    path.write_bytes(damage)
    with pytest.raises(StorageError, match="damaged"):
        store.get(ask())


def test_a_half_written_file_is_not_seen(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    store = CompletionStore(tmp_path)
    store.put(ask(), stored(ask()))
    (path,) = (tmp_path / "completions").glob("*.json")
    path.rename(path.with_name(f".{path.name}.123.tmp"))
    assert (store.get(ask()), store.dispatches()) == (None, ())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path, ask: Callable[..., ModelRequest]) -> None:
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        CompletionStore(tmp_path / "run").put(ask(), stored(ask()))


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_synced(tmp_path / "f", b"old")
    (tmp_path / f".f.{os.getpid()}.tmp").mkdir()
    with pytest.raises(StorageError):
        write_synced(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert stat.S_ISREG((tmp_path / "f").stat().st_mode)


@settings(deadline=None)
@given(st.text(max_size=400), st.text(max_size=400))
def test_file_names_are_safe_and_tell_ids_apart(one: str, other: str) -> None:
    messages = (Message(role="user", content="x"),)
    names = []
    for request_id in (one, other):
        request_id = request_id.encode("utf-8", "replace").decode()
        names.append((request_id, file_name(ModelRequest(id=request_id, messages=messages))))
    for _, name in names:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name) < 200
    assert (names[0][0] == names[1][0]) == (names[0][1] == names[1][1])
