"""kill -9 at fifty random moments, then resume: see killer.py for what is compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MEMORY = Path("/dev/shm")
"""A killed process loses nothing that it wrote, on any file system; this one does not wait for a disk."""


def test_fifty_kills_lose_nothing() -> None:
    environ = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "LANGGRAPH_STRICT_MSGPACK": "true"}
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        command = [sys.executable, "-W", "error", str(HERE / "killer.py"), folder, "50"]
        ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    runs = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [run["faults"] for run in runs] == [[]] * len(runs)
    assert runs[-1]["kills"] >= 50
    assert sum(run["lost"] for run in runs) > 0, "no kill hit a call in flight: the test has lost its teeth"
