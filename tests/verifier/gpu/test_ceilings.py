"""The cache of measured ceilings; measuring them needs a device."""

from __future__ import annotations

from pathlib import Path

from verifier.gpu.ceilings import _read, _write
from verifier.verdict import Ceilings

MADE = Ceilings(device="H200", uuid="u", driver="13000", copy_rate=4e12, flops={"bf16": 8e14})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "ceilings-u.json"
    _write(path, MADE)
    assert _read(path) == MADE
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_or_missing_cache_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ceilings-u.json"
    assert _read(path) is None
    for text in ("", "{", MADE.model_dump_json().replace("4000000000000.0", "-1")):
        path.write_text(text)
        assert _read(path) is None


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _write(tmp_path / "file" / "ceilings-u.json", MADE)
    assert _read(tmp_path / "file" / "ceilings-u.json") is None
