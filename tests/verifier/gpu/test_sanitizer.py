"""Logs of compute-sanitizer as findings, and a sanitizer that is missing or does not finish."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.gpu.replay_folder import find_tool
from verifier.gpu.sanitizer import parse, sanitize

MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at kernel+0x380 in /tmp/x/candidate.py:12
=========     by thread (65,0,0) in block (0,0,0)
=========     Access to 0x7bd889c03041 is out of bounds
=========     and is 1 bytes after the nearest allocation at 0x7bd889c03000 of size 64 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernelEx [0x2f3b4f] in libcuda.so.1
=========
========= Invalid __global__ write of size 4 bytes
=========     at kernel+0x380 in /tmp/x/candidate.py:12
=========     by thread (66,0,0) in block (0,0,0)
=========     Access to 0x7bd889c03045 is out of bounds
=========
========= Program hit CUDA_ERROR_LAUNCH_FAILED (error 719) due to "unspecified launch failure"
========= ERROR SUMMARY: 3 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at kernel+0x90 in candidate.py:41
=========     and Read access at kernel+0x100 in candidate.py:51 [508 hazards]
=========
========= Warning: Race reported between Write access at 0xa60 in other
=========     and Read access at 0xcc0 in other [28 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"


def test_accesses_outside_are_errors_with_their_line() -> None:
    first, second = parse(MEMCHECK, "memory-error")
    assert (first.severity, first.code, first.line, first.count) == ("error", "memory-error", 12, 2)
    assert first.message.startswith("Invalid __global__ write of size 4 bytes at kernel+0x380 in")
    assert "thread" not in first.message
    assert "LAUNCH_FAILED" in second.message
    assert second.line is None


def test_races_are_errors_and_warnings() -> None:
    first, second = parse(RACECHECK, "shared-memory-race")
    assert (first.severity, first.line) == ("error", 41)
    assert first.message == (
        "Race reported between Write access at kernel+0x90 in candidate.py:41 and Read access at kernel+0x100 in "
        "candidate.py:51"
    )
    assert (second.severity, second.line) == ("warning", None)
    assert second.message == "Race reported between Write access at other and Read access at other"


def test_a_clean_log_has_no_findings() -> None:
    assert parse(CLEAN, "memory-error") == []


@pytest.mark.parametrize("text", ["", "noise\n", MEMCHECK.rpartition("========= ERROR")[0]])
def test_a_log_without_an_end_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match="did not finish"):
        parse(text, "memory-error")


def test_each_tool_is_asked_and_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "races").write_text(RACECHECK)
    script = tmp_path / "compute-sanitizer"
    script.write_text(
        '#!/bin/sh\ncase "$@" in *memcheck*) echo "$PYTORCH_NO_CUDA_MEMORY_CACHING" > "$2"; exit 5;; esac\n'
        f'cat {tmp_path}/races > "$2"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, excuses = sanitize(tmp_path, seconds=60)
    assert {f.code for f in found} == {"shared-memory-race"}
    assert excuses == ("memcheck: the sanitizer did not finish: it said nothing",)


def test_a_clean_log_of_a_replay_that_failed_is_an_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compute-sanitizer"
    script.write_text(f'#!/bin/sh\nprintf "{CLEAN}" > "$2"\necho no such device >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, excuses = sanitize(tmp_path, seconds=60)
    assert found == ()
    assert excuses[0] == "memcheck: the replay failed: it ended with 1: no such device"


def test_a_missing_sanitizer_is_an_excuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if find_tool("compute-sanitizer") is None:
        assert sanitize(tmp_path, seconds=60)[1][1] == "racecheck: compute-sanitizer is not installed here"
