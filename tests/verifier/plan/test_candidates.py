"""The example candidates for Triton: each can be traced, and the audit has nothing against it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifier.specs import encode

FILES = sorted((Path(__file__).parents[1] / "gpu" / "candidates").glob("triton_*.py"))
REFUSED = {"triton_exec_source": {"reaches-out"}}
"""What the audit says of a file that goes through linecache."""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_candidate_traces(path: Path, trace: Callable[..., Any]) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    traced = trace(path.read_text(), [encode(i) for i in file.get_inputs()], prelude="")
    assert traced.status == "ok", traced.diagnostics
    assert traced.plan.programs[0].launches()
    assert traced.errors() == REFUSED.get(path.stem, set())
