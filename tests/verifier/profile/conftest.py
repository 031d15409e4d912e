from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from verifier.profile import ttir

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@dataclass(frozen=True)
class Traced:
    """A plan as the trace hands it over."""

    plan: dict[str, Any]
    blobs: dict[str, bytes]


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Traced]:
    """Plans of `ModelNew` and `Reference` of candidate.py, traced in another process."""

    folder = tmp_path_factory.mktemp("trace")
    names = ("ModelNew", "Reference")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(HERE / "trace_candidate.py"), str(folder), *names]
    subprocess.run(command, check=True, env=environ, timeout=120, cwd=ROOT)
    return {name: _unpack(folder / f"{name}.json") for name in names}


def _unpack(path: Path) -> Traced:
    packed = json.loads(path.read_text())
    assert packed["value"]["status"] == "ok", packed["value"]
    blobs = {key: base64.b64decode(data) for key, data in packed["blobs"].items()}
    return Traced(packed["value"]["plan"], blobs)


@pytest.fixture(params=["triton36", "triton39"])
def load(request: pytest.FixtureRequest) -> Any:
    """Parses a stored TTIR text of one Triton version by kernel name."""

    def parse(name: str) -> ttir.Module:
        return ttir.parse((HERE / "ttir" / request.param / f"{name}.ttir").read_text())

    return parse
