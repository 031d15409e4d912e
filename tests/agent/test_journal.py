from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.blobs import BlobStore
from agent.journal import Journal, read_events
from verifier.errors import StorageError

ROOT = Path(__file__).parents[2]


def fill(path: Path, count: int) -> None:
    with Journal(path) as journal:
        for number in range(count):
            journal.append({"t": "note", "number": number, "text": "é" * 5}, wall=number / 3)


def test_what_was_written_is_read_back_with_numbers(tmp_path: Path) -> None:
    fill(tmp_path / "j", 3)
    fill(tmp_path / "j", 2)
    events, size = read_events(tmp_path / "j")
    assert [e["seq"] for e in events] == [0, 1, 2, 3, 4]
    assert [e["number"] for e in events] == [0, 1, 2, 0, 1]
    assert size == (tmp_path / "j").stat().st_size


def test_a_tear_at_any_byte_costs_only_the_torn_line(tmp_path: Path) -> None:
    fill(tmp_path / "whole", 3)
    whole = (tmp_path / "whole").read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / "torn").write_bytes(whole[:cut])
        with Journal(tmp_path / "torn") as journal:
            assert len(journal.events) == whole[:cut].count(b"\n")
            journal.append({"t": "after"}, wall=0.0, sync=False)
        events, _ = read_events(tmp_path / "torn")
        assert events[-1]["t"] == "after"
        assert events[-1]["seq"] == len(events) - 1


@pytest.mark.parametrize(
    "tail", [b"\0\0\0\n", b'{"seq":3,"t":', b'{"seq":3}\n', b'{"seq":7,"t":"x"}\n', b"[]\n", b"\xff\n"]
)
def test_a_broken_last_line_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    fill(tmp_path / "j", 3)
    with (tmp_path / "j").open("ab") as file:
        file.write(tail)
    with Journal(tmp_path / "j") as journal:
        assert len(journal.events) == 3
    assert len(read_events(tmp_path / "j")[0]) == 3


def test_damage_before_the_end_is_refused_and_nothing_is_cut(tmp_path: Path) -> None:
    fill(tmp_path / "j", 3)
    data = bytearray((tmp_path / "j").read_bytes())
    data[5] ^= 0xFF
    (tmp_path / "j").write_bytes(data)
    with pytest.raises(StorageError, match=r"j:1: .*damaged") as caught:
        Journal(tmp_path / "j")
    assert caught.value.next_step
    assert (tmp_path / "j").read_bytes() == data


def test_there_is_one_writer(tmp_path: Path) -> None:
    with Journal(tmp_path / "j"), pytest.raises(StorageError, match="another process"):
        Journal(tmp_path / "j")
    Journal(tmp_path / "j").close()


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "no" / "j")


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path) -> None:
    """A real limit, in a process of its own: the kernel writes the part that fits and refuses the rest."""
    program = f"""
import resource
from pathlib import Path
from agent.journal import Journal
from verifier.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
with Journal(Path({str(tmp_path / "j")!r})) as journal:
    written = 0
    try:
        while True:
            journal.append({{"t": "note", "text": "x" * 20}}, wall=0.0)
            written += 1
    except StorageError as error:
        assert "cannot be written" in str(error) and "resume" in error.next_step, error.next_step
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.append({{"t": "later"}}, wall=0.0)
    print(written)
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    events, size = read_events(tmp_path / "j")
    assert [e["t"] for e in events] == ["note"] * int(ended.stdout) + ["later"]
    assert size == (tmp_path / "j").stat().st_size


def test_a_nan_never_reaches_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal, pytest.raises(ValueError, match="JSON"):
        journal.append({"t": "x", "score": float("nan")}, wall=0.0)


def test_blobs_are_named_by_content_and_checked(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    digest = blobs.put("text é")
    assert blobs.put("text é".encode()) == digest
    blobs.sync([digest])
    assert digest in blobs
    blobs.path(digest).write_bytes(b"other")
    with pytest.raises(StorageError, match="damaged"):
        blobs.text(digest)
    with pytest.raises(StorageError, match="cannot be read"):
        blobs.get("0" * 64)


def test_a_blob_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="cannot be written"):
        BlobStore(tmp_path / "blobs").put("x")
