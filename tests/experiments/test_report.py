"""The report: what it holds, that it is closed to the network and to hostile text, at any stage of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from agent.record import load_run
from agent.run_folder import RunFolder
from agent.search import search
from agent.session import Deps
from agent.testing import ScriptedBench, ScriptedGpu, ScriptedModel, Wander, make_run, reply, source
from experiments.report import render, write_report
from tools.fleet.local import LocalFleet
from tools.models.base import ModelProfile, ModelRequest

HOSTILE = '</pre></script><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements, attributes and visible text of a report; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


async def run(folder: RunFolder, model: ScriptedModel, attempts: int = 12) -> None:
    with LocalFleet(ScriptedBench(), 2) as fleet:
        await search(folder, Deps(Wander(attempts), model, fleet))


def page(folder: RunFolder) -> Page:
    return Page(write_report(folder).read_text())


async def test_everything_is_in_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", seed=3, width=2)
    await run(folder, ScriptedModel())
    record, shown = load_run(folder.path), page(folder)
    ids = {attributes.get("id") for tag, attributes in shown.tags if tag == "details"}
    assert {attempt.id for attempt in record.attempts} <= ids
    for word in ("Search", "Budget", "Outcomes", "Best kernel", "Attempts", "Manifest", "Refunds", "Lost in flight"):
        assert word in shown.text
    for axis in ("calls", "tokens", "gpu_seconds", "wall_seconds", "dollars"):
        assert axis in shown.text
    for attempt in record.attempts:
        for turn in attempt.turns:
            assert turn.feedback in shown.text
            held = record.source(turn)
            assert held is None or held.splitlines()[-1] in shown.text
    assert "Difference from" in shown.text
    assert "every time is an analytic estimate" in shown.text
    assert '"strategy": "wander"' in shown.text
    assert sum(tag == "circle" for tag, _ in shown.tags) == len(record.attempts)


async def searched_on_gpus(folder: RunFolder, *names: str) -> None:
    """Sessions on GPUs, by the names that the driver gives; an empty one stands for a session without."""
    script = ScriptedModel(lambda r: reply(source(speed=2.0, note=r.id, confirm="correct 3.0")))
    for name in names:
        with LocalFleet(ScriptedBench(), 1, [ScriptedGpu(seconds=0.01)] if name else []) as fleet:
            await search(folder, Deps(Wander(3), script, fleet, devices=(name,) if name else ()))


async def test_measured_numbers_stand_with_their_intervals_and_leases(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measured=True)
    await searched_on_gpus(folder, "NVIDIA H200")
    text = page(folder).text
    assert "3.00x, measured and confirmed" in text
    assert text.count("2.997 to 3.003 (96%)") >= 3
    assert text.count("1.998 to 2.002 (96%)") >= 2
    assert "confirmation" in text
    for call in ("visit", "confirm", "file", "examine"):
        assert re.search(rf"{call}\d0\.\d\d", text), "leases and seconds of each call"
    assert "analytic estimate" not in text


async def test_a_run_that_was_judged_anew_says_where_and_shows_no_estimate_as_a_score(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await searched_on_gpus(folder, "", "NVIDIA H200")
    text = page(folder).text
    assert "judged anew on NVIDIA H200: 3 verdicts." in text
    assert "visit, judged anew3" in text
    assert "3.00x, measured and confirmed" in text
    assert "every time is an analytic estimate" not in text


async def test_the_sampler_is_called_what_it_is(tmp_path: Path) -> None:
    profile = ModelProfile(name="sampler", is_language_model=False)
    for name, given in (("sampled", profile), ("modelled", None)):
        folder = make_run(tmp_path / name, profile=given)
        await run(folder, ScriptedModel(), attempts=1)
        assert ("not a language model" in page(folder).text) == (given is not None)


async def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await run(folder, ScriptedModel())
    for tag, attributes in page(folder).tags:
        assert tag not in {"link", "iframe", "img", "object", "base"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    html = (folder.path / "report.html").read_text()
    assert not re.search(r"url\(|@import", html)
    assert "default-src 'none'" in html


async def test_hostile_text_stays_text(tmp_path: Path) -> None:
    def hostile(request: ModelRequest) -> str:
        return f"{HOSTILE}\n{reply(source('wrong', note=HOSTILE))}"

    folder = make_run(tmp_path / "run", init=source("correct", note=HOSTILE))
    await run(folder, ScriptedModel(hostile), attempts=3)
    shown = page(folder)
    assert shown.text.count(HOSTILE) >= 5
    assert sum(tag == "script" for tag, _ in shown.tags) == 1
    assert not [attributes for _, attributes in shown.tags if any(name.startswith("on") for name in attributes)]


@pytest.mark.parametrize("stop_after", [0, 1, 9, 25])
async def test_an_unfinished_run(tmp_path: Path, stop_after: int) -> None:
    """The journal of a run that was killed: whole lines, then half a line."""
    folder = make_run(tmp_path / "run", seed=1)
    await run(folder, ScriptedModel())
    lines = folder.journal.read_bytes().splitlines(keepends=True)
    folder.journal.write_bytes(b"".join(lines[:stop_after]) + lines[stop_after][:7])
    assert "unfinished" in page(folder).text


def test_a_run_that_never_began(tmp_path: Path) -> None:
    shown = page(make_run(tmp_path / "run"))
    assert "unfinished" in shown.text
    assert "0 of 0" in shown.text


async def test_two_hundred_attempts_stay_a_modest_file(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    await run(folder, ScriptedModel(), attempts=10)
    record = load_run(folder.path)
    many = [replace(record.attempts[n % 10], id=f"a{n:04}", order=n) for n in range(200)]
    html = render(replace(record, attempts=(*many,), best="a0000" if record.best else None))
    assert sum(tag == "circle" for tag, _ in Page(html).tags) == 200
    assert len(html) < 8_000_000
