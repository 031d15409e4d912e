"""The scripts of the figures, on a device in host memory and tiny sizes: what is counted, kept and said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.fidelity.pack import pack
from experiments.figures import aa, beside, blocks, growth, published, spread, throughput
from experiments.figures.__main__ import main
from experiments.figures.base import SEED, Book, Lab, Options, Row
from experiments.figures.blocks import Job, run_jobs
from experiments.figures.kernels import FAMILIES, RELU, WRONG
from experiments.figures.run import run, show
from experiments.figures.stock import in_runs, items, read_item
from verifier.errors import UsageError
from verifier.gpu.link import Link, TimedReply
from verifier.gpu.pairs import Pairs
from verifier.gpu.supervisor import GpuWorker
from verifier.interpreter.gate import Zygotes
from verifier.sequence import block_location
from verifier.timing import Block

HERE = Path(__file__).parent
DEVICE = "figures_device:open_device"


@pytest.fixture(scope="module")
def worker() -> Iterator[GpuWorker]:
    with GpuWorker(DEVICE, paths=[HERE]) as started:
        yield started


class OneWorker(Lab):
    """All figures on one worker: starting one takes seconds."""

    def __init__(self, options: Options, zygotes: Zygotes, worker: GpuWorker) -> None:
        super().__init__(options, zygotes)
        self._worker = worker

    @contextmanager
    def worker(self, gpu: str | None = None) -> Iterator[GpuWorker]:
        yield self._worker


@pytest.fixture
def lab(tmp_path: Path, zygotes: Zygotes, worker: GpuWorker) -> Iterator[Any]:
    def make(**options: Any) -> Lab:
        given = {"out": tmp_path, "small": True, "device": DEVICE, "paths": (HERE,), "cores": 2, "count": 3, **options}
        return OneWorker(Options(**given), zygotes, worker)

    return make


def rows(folder: Path, name: str) -> list[Row]:
    return Book(folder / f"{name}.jsonl").rows


def test_relu_hang_and_growth(lab: Any, tmp_path: Path) -> None:
    said = {line.what: line.value for line in run(["relu", "hang", "growth"], lab(count=2))}
    relu = rows(tmp_path, "relu")
    assert [(r["turn"], r["status"], r["checks"]) for r in relu] == [(i, "passed", 6) for i in range(3)]
    assert all(0 < r["check"] + r["time"] <= r["leased"] for r in relu)
    assert [(r["status"], r["next"]) for r in rows(tmp_path, "hang")] == [("timeout", "passed")] * 2
    assert all(0 < r["late"] < 2 for r in rows(tmp_path, "hang"))
    assert said["hang: verdicts"] == "timeout then passed"
    grown = rows(tmp_path, "growth")
    assert [r["visits"] for r in grown] == [0, 1, 2]
    assert all(r[f"{part}_bytes"] > 1e6 and r[f"{part}_files"] > 2 for r in grown for part in growth.PARTS)
    assert [line.what for line in show(tmp_path)] == list(said)


def test_a_stock_is_streamed_traced_and_from_its_source(lab: Any, tmp_path: Path) -> None:
    chosen = lab(problems=("relu",), count=3)
    said = {line.what: line.value for line in run(["stock", "throughput", "end_to_end"], chosen)}
    assert said["stock: candidates traced"] == "3, 1 with a mistake"
    assert len({i.traced.stage.report.plan for i in items(chosen)}) == 3
    assert sorted(r["number"] for r in rows(tmp_path, "throughput")) == [0, 1, 2]
    assert said["throughput: verdicts"] == "3 correct"  # this device runs the right kernel whatever the text says
    assert said["end_to_end: verdicts"] == "2 correct, 1 wrong"  # the interpreter reads the text
    assert run(["stock"], chosen)[0].value == "3, 1 with a mistake"  # nothing is traced again


def test_the_host_of_a_fleet_judges_a_file_of_the_stock(lab: Any, tmp_path: Path) -> None:
    run(["stock"], lab(problems=("relu",), count=1))
    with closing(throughput.StockHost("", DEVICE, (HERE,))) as host:
        assert host.judge(str(tmp_path / "stock" / "0000.traced")) == "passed"


def test_a_busy_neighbour_is_compared_with_being_alone() -> None:
    made = [
        {"case": name, "turn": 0, "how": how, "speedup": 1.0, "candidate_seconds": seconds}
        for name in spread.CASES for how, seconds in (("alone", 1e-3), ("busy", 1.01e-3))
    ]  # fmt: skip
    said = beside.lines([*made, {"case": "neighbour", "turn": 0, "how": "busy", "visits": 7, "speedup": None}])
    assert said[0].value == "1.0100: 1.0100 ms against 1.0000 ms, 1 each"
    assert said[-1].value == "7"


def test_a_stock_comes_in_runs_of_one_problem(lab: Any) -> None:
    run(["stock"], lab(problems=("relu", "matmul"), count=4))
    names = [i.traced.problem.name for i in in_runs(items(lab(count=4)))]
    assert names == ["matmul", "relu"] * 2


def test_a_stock_lists_itself_for_a_fleet(lab: Any, tmp_path: Path) -> None:
    run(["stock"], lab(problems=("relu", "matmul"), count=6))
    stream, warm = (
        [read_item(Path(*json.loads(line))) for line in (tmp_path / "stock" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("stream", "warm")
    )
    assert [i.traced.problem.name for i in stream] == ["matmul"] * 3 + ["relu"] * 3
    assert {i.number for i in stream} == set(range(6))
    assert [(i.traced.problem.name, i.planted) for i in warm] == [("matmul", ""), ("relu", "")]


def test_a_plan_against_itself(lab: Any, tmp_path: Path) -> None:
    book = Book(tmp_path / "aa.jsonl")
    names = [*(f"{name} {n}" for name, n in aa.CASES), f"eager attention {aa.EAGER.size}"]
    for name in names:
        for anew in (True, False):
            book.add(case=name, anew=anew, blocks=[0.0] * 4, deviation=0.01, mean=0.0)
    for turn in range(5):
        book.add(turn=turn, case=names[turn], decision="skipped", decided=None, confirmed=None)
    said = {line.what: line.value for line in run(["aa=60"], lab(count=6))}
    (row,) = [r for r in rows(tmp_path, "aa") if r.get("turn") == 5]
    assert row["case"] == names[5]
    assert row["decided"]["blocks"] + sum(row["decided"]["thrown"].values()) > 0
    assert row["confirmed"]["call"] is None or row["confirmed"]["call"] > 0
    assert "deviation of 4 blocks in exchanged memory 1.000%; deviation" in said[f"aa: {names[5]}"]


def test_intervals_beside_one_are_counted() -> None:
    ends = [(-0.01, 0.01), (0.001, 0.01), (-0.01, -0.001), (None, None)]
    made = [
        {"turn": i, "case": "x", "decision": "futile", "confirmed": None, "decided": {
            "lower": low, "upper": high, "log_ratio": 0.0, "blocks": 4, "thrown": {}, "call": 1e-3, "seconds": 0.1,
            "confidence": 0.96,
        }}
        for i, (low, high) in enumerate(ends)
    ]  # fmt: skip
    said = {line.what: line.value for line in aa.lines(made)}
    assert said["decided: intervals beside 1"] == "2 of 3 at 96%"
    assert said["confirmed: intervals beside 1"] == "0 of 0"
    assert said["x"].startswith(
        "decided: 2 of 3 beside 1, log ratios +0.0000 to +0.0000, half-width 0.0063, 4.0 blocks"
    )


def test_blocks_in_new_and_in_the_same_memory(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    traced = lab().trace(FAMILIES["relu"].problem("relu", 256), RELU)
    jobs = tuple(Job(traced.request(SEED), traced.against_itself(), 3, anew) for anew in (True, False))
    with torch.no_grad():
        found = run_jobs(DEVICE, (HERE,), jobs, 30.0)
    assert [len(blocks) for blocks in found] == [3, 3]
    assert all(abs(x) < 1.0 for blocks in found for x in blocks)


def test_a_block_begins_warm_and_each_side_begins_every_other_one(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    seen: list[tuple[list[str], tuple[float, ...]]] = []

    class Watched(Link):
        def time(self, order: Sequence[str], **options: Any) -> TimedReply:
            timed = super().time(order, **options)
            seen.append((list(order), timed.reply.seconds))
            return timed

    monkeypatch.setattr(blocks, "Link", Watched)
    traced = lab().trace(FAMILIES["relu"].problem("relu", 256), RELU)
    with torch.no_grad():
        (found,) = run_jobs(DEVICE, (HERE,), (Job(traced.request(SEED), traced.against_itself(), 6, True),), 30.0)
    warm, timed = seen[::2], seen[1::2]
    assert [sorted(order) for order, _ in warm] == [["a", "b"]] * 6
    begun = [order[0] for order, _ in timed]
    assert all({x, y} == {"a", "b"} for x, y in zip(begun[::2], begun[1::2], strict=True))
    for (order, seconds), location in zip(timed, found, strict=True):
        assert len(order) > 4, "the calls before the first block say how many pairs it can have"
        by_side = [[s for side, s in zip(order, seconds, strict=True) if side == which] for which in "ab"]
        assert location == block_location(list(zip(*by_side, strict=True)))


def test_late_calls_count_where_both_sides_are_graphs(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    graphs: Iterator[bool] = iter([True, True, True, False])  # of both sides, in two blocks
    late: list[tuple[int, int]] = []

    class Late(Link):
        def capture(self, name: str, *, graph: bool = True) -> bool:
            super().capture(name, graph=graph)
            return next(graphs)

        def time(self, order: Sequence[str], **options: Any) -> TimedReply:
            timed = super().time(order, **options)
            return replace(timed, reply=timed.reply.model_copy(update={"starved": len(order)}))

    class Told(Pairs):
        def measure(self, index: int) -> Block:
            block = super().measure(index)
            late.append((block.starved, 2 * len(block.pairs)))
            return block

    monkeypatch.setattr(blocks, "Link", Late)
    monkeypatch.setattr(blocks, "Pairs", Told)
    traced = lab().trace(FAMILIES["relu"].problem("relu", 256), RELU)
    with torch.no_grad():
        run_jobs(DEVICE, (HERE,), (Job(traced.request(SEED), traced.against_itself(), 2, True),), 30.0)
    (first, calls), second = late
    assert first == calls > 0
    assert second[0] == 0


def test_published_answers_are_counted_against_direct_runs(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "level2").mkdir()
    answers = tmp_path / "level_2_some-model"
    answers.mkdir()
    for number, source in enumerate((RELU, WRONG, "def ModelNew(:"), 1):
        (tmp_path / "level2" / f"{number}_Relu.py").write_text(FAMILIES["relu"].problem("relu", 64).source)
        (answers / f"level_2_problem_{number}_sample_0_kernel.py").write_text(source)
    pack([(answers, tmp_path)], tmp_path / "packed", {})
    good = {"shape": True, "close": True, "err": 1e-7}
    truth = {"some-model_1": good, "some-model_2": good, "some-model_3": {"exc": "SyntaxError"}, "other_1": good}
    (tmp_path / "truth.json").write_text(json.dumps({"results": truth}))
    said = run(["published"], lab(packed=tmp_path / "packed", truth=tmp_path / "truth.json"))
    found = {r["key"]: r for r in rows(tmp_path, "published")}
    assert {k: (r["status"], r["direct"]) for k, r in found.items()} == {
        "some-model_1": ("correct", "right"),
        "some-model_2": ("wrong", "right"),
        "some-model_3": ("unparsable", "failed"),
    }
    assert found["some-model_2"]["gpu"] == "wrong"
    assert said[0].value == "2"
    assert said[-1].what == "published: some-model_2"
    assert published.direct({"run": True, "shape": False}) == "wrong"


def test_a_speed_up_and_its_spread() -> None:
    more = {"half_width": 0.001, "candidate_seconds": 1e-3, "base_seconds": 2e-3, "thrown": 0, "flags": []}
    made = [{"case": "relu", "turn": i, "speedup": 2.0 + 0.01 * i, **more} for i in range(3)]
    lost = {"case": "relu", "turn": 3, "speedup": None}
    assert spread.lines([*made, lost])[0].value == "1.00%: 2.0000 to 2.0200x over 3"


def test_verdicts_per_hour_and_what_was_not_found() -> None:
    made = [{"number": i, "problem": "p", "planted": "m" * (i > 1), "status": "correct", "reason": "", "wall": 0.5,
             "check": 0.1, "time": 0.2, "at": 0.5 * (i + 1), "parts": {"runner run": 0.05 * (i > 0)}}
            for i in range(3)]  # fmt: skip
    said = throughput.lines(made)
    assert said[0].value == "7,200: 3 in 1.5 s"
    assert [line.what for line in said[2:4]] == ["p, first of a run", "p, right"]
    assert said[3].value == "2: wall 500 ms, check 100 ms, time 200 ms; outside 450.0, runner run 50.0"
    assert said[-1].what == "candidate 2, p"


def test_a_row_that_a_kill_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    Book(path).add(turn=0)
    path.write_text(path.read_text() + '{"turn": 1, "ca')
    again = Book(path)
    assert again.rows == [{"turn": 0}]
    again.add(turn=1)
    assert Book(path).rows == [{"turn": 0}, {"turn": 1}]


def test_what_is_missing_is_one_sentence(lab: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no figure 'rellu'"):
        run(["rellu"], lab())
    (line,) = run(["published"], lab())
    assert line.value == "published answers need --packed and --truth"
    assert "holds no traced candidates" in run(["throughput"], lab(stock=tmp_path / "none"))[0].value
    assert main(["relu=soon", "--out", str(tmp_path)]) == 2
    assert "no number of seconds" in capsys.readouterr().err
