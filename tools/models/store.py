"""Completions on disk: what was received is never asked for again, and what was sent is known after a crash.

    completions/NAME.json        the answer, the dispatch that it answers and its charge
    completions/NAME.sent.json   every dispatch of the request: sent, failed, lost or waiting
    completions/profile.json     the profile of the first completion, for replays

NAME is the request's id, percent-encoded, and its digest: an answer belongs to a question, not to a number.
Each file is written aside, synced, renamed, and its folder synced, so a reader (also on another machine)
sees a whole file or none.

Not protected against: two processes that ask for the same request at the same time. A run folder has one
owner at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from tools.metering import Charge
from tools.models.base import Completion, HttpAttempt, ModelProfile, ModelRequest
from verifier.errors import StorageError
from verifier.verdict import Record

R = TypeVar("R", bound=Record)
LONGEST_NAME = 150
"""Characters of an encoded id in a file name; a longer one is cut and hashed."""


class Dispatch(Record):
    """One time that a request went out, or waits for an answer by hand or by file."""

    key: str
    """Key of the reservation: `ID@DIGEST#NUMBER`, unique in a run."""
    request: str
    digest: str
    bound: Charge
    """What was reserved for it."""
    state: Literal["sent", "answered", "failed", "lost", "waiting"]
    actual: Charge | None = None
    """What the answer cost; None unless answered."""
    error: str = ""
    attempts: tuple[HttpAttempt, ...] = ()
    """HTTP attempts of a failed dispatch; those of an answered one are in its completion."""


class Stored(Record):
    """An answer. `key` is "" while the answer came from outside (batch) and is not charged yet."""

    request: str
    digest: str
    completion: Completion
    key: str = ""
    bound: Charge = Charge()
    actual: Charge = Charge()


class _Log(Record):
    dispatches: tuple[Dispatch, ...] = ()


class CompletionStore:
    """The completions of one run. `folder` is the run folder; it is made when something is first written.

    Every method raises StorageError when a file cannot be read, is damaged or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "completions"

    def get(self, request: ModelRequest) -> Stored | None:
        return read_record(self.folder / f"{file_name(request)}.json", Stored)

    def find(self, request_id: str) -> tuple[Stored, ...]:
        """All answers to requests of this id, whatever was asked."""
        paths = sorted(self.folder.glob("*.json"))
        found = (read_record(path, Stored) for path in paths if _is_answer(path))
        return tuple(stored for stored in found if stored is not None and stored.request == request_id)

    def put(self, request: ModelRequest, stored: Stored) -> None:
        """Writes the answer; it is on disk when this returns."""
        write_record(self.folder / f"{file_name(request)}.json", stored)

    def put_outside(self, request: ModelRequest, completion: Completion) -> None:
        """Writes an answer that came by hand or by file. The gateway charges it when it is next asked for."""
        self.put(request, Stored(request=request.id, digest=request.digest, completion=completion))

    def log(self, request: ModelRequest) -> tuple[Dispatch, ...]:
        """Dispatches of this request without a stored answer, oldest first."""
        log = read_record(self._log_path(request), _Log)
        return log.dispatches if log else ()

    def mark(self, request: ModelRequest, dispatch: Dispatch) -> None:
        """Writes the dispatch, in the place of an earlier state of the same key."""
        others = tuple(d for d in self.log(request) if d.key != dispatch.key)
        write_record(self._log_path(request), _Log(dispatches=(*others, dispatch)))

    def dispatches(self) -> tuple[Dispatch, ...]:
        """Every dispatch of the run, answered ones included, by file name and then by age."""
        answered = {d.key: d for path in self._paths() if _is_answer(path) and (d := _answered(path)) is not None}
        logs = [read_record(path, _Log) for path in self._paths() if path.name.endswith(".sent.json")]
        marked = [d for log in logs if log is not None for d in log.dispatches]
        return (*answered.values(), *(d for d in marked if d.key not in answered))

    def sent_unanswered(self) -> tuple[Dispatch, ...]:
        """Dispatches whose request may have reached a server and has no answer here: charge `bound` as lost.

        Call it before the run goes on; a request that is in flight looks the same. Then `mark_lost`.
        """
        return tuple(d for d in self.dispatches() if d.state == "sent")

    def mark_lost(self, dispatch: Dispatch) -> None:
        """Closes a dispatch that `sent_unanswered` gave. Repeating it changes nothing."""
        path = self.folder / f"{_name(dispatch.request, dispatch.digest)}.sent.json"
        log = read_record(path, _Log) or _Log()
        lost = dispatch.model_copy(update={"state": "lost"})
        write_record(path, _Log(dispatches=tuple(lost if d.key == lost.key else d for d in log.dispatches)))

    def profile(self) -> ModelProfile | None:
        return read_record(self.folder / "profile.json", ModelProfile)

    def keep_profile(self, profile: ModelProfile) -> None:
        """Writes the profile once; a later one does not replace it."""
        if not (self.folder / "profile.json").exists():
            write_record(self.folder / "profile.json", profile)

    def _log_path(self, request: ModelRequest) -> Path:
        return self.folder / f"{file_name(request)}.sent.json"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))


def file_name(request: ModelRequest) -> str:
    """Name of a request's files, without suffix: safe on any file system, whatever the id holds."""
    return _name(request.id, request.digest)


def _name(request_id: str, digest: str) -> str:
    name = quote(request_id, safe="").replace(".", "%2E")
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}~{sha256(request_id.encode()).hexdigest()[:16]}"
    return f"{name}@{digest}"


def _is_answer(path: Path) -> bool:
    return not path.name.endswith(".sent.json") and path.name != "profile.json"


def _answered(path: Path) -> Dispatch | None:
    stored = read_record(path, Stored)
    if stored is None or not stored.key:
        return None
    return Dispatch(
        key=stored.key,
        request=stored.request,
        digest=stored.digest,
        bound=stored.bound,
        state="answered",
        actual=stored.actual,
    )


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record in a file, or None where there is no file. Raises StorageError for a damaged one."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise StorageError(f"{path} is damaged: it is not a {kind.__name__} record") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from None


def write_record(path: Path, record: Record) -> None:
    write_synced(path, record.model_dump_json().encode() + b"\n")


def write_synced(path: Path, data: bytes) -> None:
    """Replaces a file whole and waits until the disk has it and its name. Raises StorageError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _make_folder(path.parent)
        with _removed_on_error(aside), open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}",
            next_step="Free some space or change the run folder, then resume.",
        ) from None


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
