"""The fleet decides no result: one run folder, searched on both fleets, gives one journal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.journal import read_events
from agent.run_folder import RunFolder
from experiments.api import prepare
from experiments.session import run_search
from verifier.errors import UsageError
from verifier.interpreter.gate import Zygotes

OF_THE_CLOCK = {"wall", "verdict", "fleet"}
"""A verdict's blob holds the seconds of its stages."""


def journal(folder: Path) -> list[dict[str, Any]]:
    events = read_events(folder / "journal.jsonl")[0]
    return [{key: value for key, value in event.items() if key not in OF_THE_CLOCK} for event in events]


def test_local_and_ray_give_the_same_journal(tiny_attention: Path, tmp_path: Path, zygotes: Zygotes) -> None:
    folder = prepare(str(tiny_attention), budget="calls=1", width=1, max_repairs=0, seed=2, out=tmp_path / "local")
    shutil.copytree(folder.path, tmp_path / "ray")
    run_search(folder, zygotes=zygotes)
    run_search(RunFolder.open(tmp_path / "ray"), fleet="ray", workers=1)
    assert journal(tmp_path / "ray") == journal(tmp_path / "local")
    assert "verdict" in {event["t"] for event in journal(tmp_path / "ray")}
    sessions = [read_events(tmp_path / name / "journal.jsonl")[0][0]["fleet"] for name in ("local", "ray")]
    assert sessions == ["local", "ray"]
    assert "fleet" not in (tmp_path / "ray" / "manifest.json").read_text()


def test_an_unknown_fleet_is_refused(tiny_attention: Path, tmp_path: Path) -> None:
    folder = prepare(str(tiny_attention), budget="calls=3", out=tmp_path / "run")
    with pytest.raises(UsageError, match="slurm"):
        run_search(folder, fleet="slurm")
