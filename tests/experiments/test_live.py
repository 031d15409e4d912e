"""The live view: rows from events, what earlier sessions did, a reader that goes away."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agent.journal import read_events
from agent.record import load_run
from agent.search import search
from agent.session import Deps
from agent.testing import ScriptedBench, ScriptedGpu, ScriptedModel, Wander, make_run, reply, source
from experiments.live import Live, announce
from experiments.session import other_gpus
from tools.fleet.local import LocalFleet

CLOSED = "import os\nfrom experiments.live import say\n[say('x' * 9999) for _ in range(99)]\nos.write(2, b'went on')"


async def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", budget="calls=20,minutes=5")
    live = Live(folder.manifest)
    with live, LocalFleet(ScriptedBench(), 1) as fleet:
        await search(folder, Deps(Wander(4), ScriptedModel(), fleet), live.see)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["a0001", "a0002", "a0003", "a0004"]
    assert all("of 20 calls" in line and "of 5 minutes" in line for line in lines)

    past = read_events(folder.journal)[0]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Live(folder.manifest, past)._render())
    shown = console.export_text()
    assert lines[-1].split()[0] in shown
    assert "…" not in shown
    spent = sum(event["actual"].get("calls", 0) for event in past if event["t"] == "settle")
    assert f"{spent} of 20 calls" in shown
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("live", "gain"), [(False, "2.00x"), (True, "2.00x live")])
async def test_a_run_that_gets_a_gpu_says_that_it_was_judged_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], live: bool, gain: str
) -> None:
    folder = make_run(tmp_path / "run")
    script = ScriptedModel(lambda request: reply(source(speed=9.0, visit="correct 2.0")))
    for devices in ((), (ScriptedGpu(live=live),)):
        capsys.readouterr()
        past = read_events(folder.journal)[0] if devices else []
        view = Live(folder.manifest, past)
        with view, LocalFleet(ScriptedBench(), 1, devices) as fleet:
            deps = Deps(Wander(2), script, fleet, devices=("NVIDIA H200",) * len(devices))
            summary = await search(folder, deps, view.see)
        announce(folder, summary, folder.path / "report.html")
    said = capsys.readouterr().out
    assert "judged anew on NVIDIA H200: 1 verdicts" in said
    assert f"{gain} over eager (measured on a GPU, confirmed)" in said
    assert f"small: {gain}, 1.998 to 2.002 (96%){', live by the host' * live}" in said
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(Live(folder.manifest, read_events(folder.journal)[0])._render())
    shown = console.export_text()
    assert "9.00x" not in shown
    assert shown.count("2.00x") == shown.count(gain) == 3, "both rows, the second is a duplicate, and the best"
    record = load_run(folder.path)
    assert [a.live for a in record.attempts if a.score is not None] == [live, live]


def test_gpus_of_two_kinds_in_one_run_are_told() -> None:
    past = [{"t": "begin", "devices": ["NVIDIA H200"]}, {"t": "begin"}]
    assert other_gpus(["NVIDIA H200", "NVIDIA H200"], past) == ""
    assert other_gpus([], past) == ""
    assert "NVIDIA H200, NVIDIA H100 PCIe; " in other_gpus(["NVIDIA H100 PCIe"], past)


def test_a_closed_pipe_ends_the_view_and_nothing_else() -> None:
    with subprocess.Popen([sys.executable, "-c", CLOSED], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b"went on"
    assert child.returncode == 0
