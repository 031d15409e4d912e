"""The GPU half of the corpus test as far as a CPU goes: plans of library steps, and the logic around them."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.fidelity import cases, launches, measure, table, workers
from experiments.fidelity.__main__ import main
from experiments.fidelity.gpu import read_cases
from experiments.fidelity.pack import read_index
from experiments.fidelity.plans import PlanFile
from experiments.fidelity.trace import Row
from experiments.fidelity.workers import Children
from verifier.measure import relative_error
from verifier.plan.arguments import PointerArg
from verifier.plan.schema import Alternative, KernelImage, LaunchStep, Param, Program, Storage

PROBLEM = """\
import torch
class Model(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.lin = torch.nn.Linear(n, n)
    def forward(self, x):
        return self.lin(x) * 2
def get_inputs():
    return [torch.rand(8, 16)]
def get_init_inputs():
    return [16]
"""
SAME = PROBLEM.replace("class Model", "class ModelNew")
ANSWERS = {
    0: SAME,
    1: SAME.replace("return", "raise ValueError('no') or"),
    2: SAME.replace("self.lin(x) * 2", "torch.empty_like(x)"),
    3: SAME.replace("self.lin(x) * 2", "(self.lin(x) * 2, x.mul_(3))[0]"),
    4: SAME + "import os\nos._exit(3)\n",
}


def name(sample: int) -> str:
    return f"level_1_problem_7_sample_{sample}_kernel.py"


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    """Answers and checkout. Sample 5 is a copy of sample 0."""
    (tmp_path / "level1").mkdir()
    (tmp_path / "level1" / "7_Lin.py").write_text(PROBLEM)
    folder = tmp_path / "some-model"
    folder.mkdir()
    for sample, text in {**ANSWERS, 5: SAME}.items():
        (folder / name(sample)).write_text(text)
    return folder, tmp_path


def test_pack_run_replay_compare(corpus: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, out = tmp_path / "packed", tmp_path / "out"
    recorded = tmp_path / "recorded.json"
    recorded.write_text(f'{{"some-model/{name(1)}": {{"ran": false}}, "some-model/{name(2)}": true}}')
    pair = f"{corpus[0]}={corpus[1]}"
    assert main(["pack", pair, "--to", str(packed), "--recorded", str(recorded), "--plans", "60"]) == 0
    entries = {e.file: e for e in read_index(packed)}
    assert entries[name(0)].names == (f"some-model/{name(0)}", f"some-model/{name(5)}")
    assert [entries[name(i)].recorded for i in range(4)] == ["", "failed", "ran", ""]
    assert PlanFile(packed / "plans.zip").names() == {entries[name(i)].id for i in (0, 2, 3)}
    given = ["gpu", str(packed), "--out", str(out), "--device", "cpu", "--slots", "2", "--tracers", "2"]
    assert main(given) == 0
    found = {case.names[0].partition("/")[2]: case for case in read_cases(out)}
    assert len(found) == len(ANSWERS)
    _check_cases(found)
    text = (out / "table.md").read_text()
    assert "| all | 5 | 3 | 2 | 3 | 100.0% | 2 | 2 | 1 | 0 |" in text
    assert "bit-identical" in text
    lines = (out / "rows.jsonl").read_text()
    with (out / "rows.jsonl").open("a") as file:
        file.write('{"id": "cut off by a k')
    assert main(given) == 0
    assert (out / "rows.jsonl").read_text() == lines
    assert main(["table", str(out)]) == 0
    assert "Traces against direct runs" in capsys.readouterr().out


def _check_cases(found: dict[str, cases.Case]) -> None:
    good, raises, garbage, changes, dies = (found[name(i)] for i in range(5))
    assert good.direct is not None
    assert good.direct.right
    for label in ("here", "carried"):
        assert cases.cause(good.direct, good.replays[label]) == "bit-identical"
        assert good.replays[label].same_inputs
        assert good.replays[label].other_flags == ()
    assert raises.direct is not None
    assert (raises.direct.status, raises.direct.stage) == ("error", "first call")
    assert raises.direct.message == "ValueError: no"
    assert cases.cause(garbage.direct, garbage.replays["here"]) == "reads memory that nothing wrote"
    assert changes.direct is not None
    assert changes.direct.changes_inputs
    assert changes.direct.right
    assert cases.cause(changes.direct, changes.replays["here"]) == "bit-identical"
    assert dies.direct is not None
    assert dies.direct.status == "crash"
    assert not dies.direct.ran


def test_a_folder_that_is_not_packed_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "pack" in capsys.readouterr().err
    assert main(["pack", "nothing", "--to", str(tmp_path)]) == 2


def test_a_late_child_is_ended_with_its_own_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless_job.py").write_text(
        "import os, time\n"
        "def waits(report, payload):\n"
        "    own = os.fork()\n"
        "    if own == 0:\n"
        "        time.sleep(600)\n"
        "    report.note(own=own)\n"
        "    report.stage('waiting')\n"
        "    time.sleep(600)\n"
        "def ends(report, payload):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    children = Children(preload=())
    assert children.run("endless_job:ends", tmp_path, {}, 120.0)["status"] == "ok", "the server runs"
    found = children.run("endless_job:waits", tmp_path, {}, 3.0)
    assert (found["status"], found["stage"]) == ("timeout", "waiting")
    end = time.monotonic() + 60
    while not _ended(found["own"]):
        assert time.monotonic() < end
        time.sleep(0.02)


def _ended(pid: int) -> bool:
    """Gone, or dead and not yet waited for by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


# -- causes ----------------------------------------------------------------------------------------

RAN = {"status": "ok", "first_seconds": 1.0, "repeatable": True}
DIFFERS: dict[str, Any] = {"status": "ok", "equal": False, "shapes": True, "repeatable": True, "same_inputs": True}


@pytest.mark.parametrize(
    ("direct", "replay", "wanted"),
    [
        ({}, {"equal": True}, "bit-identical"),
        ({}, {"status": "error", "stage": "set-up"}, "replay: error at set-up"),
        ({"first_seconds": None}, {"equal": None}, "no direct run to compare with"),
        ({}, {"equal": None}, "the direct run ended before its outputs were kept"),
        ({}, {"shapes": False}, "other shapes or dtypes"),
        ({}, {"same_inputs": False}, "other inputs"),
        ({"repeatable": False}, {}, "not repeatable: the direct run"),
        ({}, {"repeatable": False}, "not repeatable: the replay"),
        ({}, {"reads_unwritten": True}, "reads memory that nothing wrote"),
        ({}, {"random": True}, "draws random numbers"),
        ({}, {"without_choice": 1}, "a configuration that the plan does not have"),
        ({}, {"launches": {"different": 1, "identical": 3}}, "a custom launch differs on equal arguments"),
        ({}, {"launches": {"unmatched": 1}}, "launches cannot be matched"),
        ({}, {"launches": {"identical": 1, "downstream": 1}}, "library steps; custom launches identical"),
        ({}, {"launches": {"downstream": 1}}, "library steps before any launch"),
    ],
)
def test_every_difference_has_a_cause(direct: dict[str, Any], replay: dict[str, Any], wanted: str) -> None:
    one = cases.Direct.model_validate(RAN | direct)
    assert cases.cause(one, cases.Replayed.model_validate(DIFFERS | replay)) == wanted


def test_a_label_without_a_result_ends_as_its_child_did() -> None:
    report = {"status": "timeout", "message": "ran longer than 45 s", "here": {"status": "ok", "equal": True}}
    found = cases.read_replays(report, {"here": "", "carried": ""})
    assert found["here"].status == "ok"
    assert (found["carried"].status, found["carried"].message) == ("timeout", "ran longer than 45 s")


@pytest.mark.parametrize(
    ("trace", "direct", "same"),
    [
        ("module has no attribute absolute", "CompilationError: at 5:9: ... has no attribute 'absolute'", True),
        ("incompatible dimensions 64 and 32", "OutOfMemoryError: CUDA out of memory", False),
        ("", "anything", True),
    ],
)
def test_reasons_are_compared_by_words(trace: str, direct: str, same: bool) -> None:
    assert cases.same_reason(trace, direct) == same


def test_a_long_message_keeps_both_ends() -> None:
    told = workers.told(ValueError("a" * 1000 + "the reason"))
    assert told.startswith("ValueError: aaa")
    assert told.endswith("the reason")
    assert len(told) < 700


# -- launches --------------------------------------------------------------------------------------


def seen(kernel: str, before: Sequence[int], after: Sequence[int], **more: object) -> launches.Seen:
    names = ("x", "o")
    given = {"before": {n: [v] for n, v in zip(names, before, strict=True)}}
    return {"kernel": kernel, **given, "after": {n: [v] for n, v in zip(names, after, strict=True)}, **more}


def test_a_launch_is_judged_by_what_it_loads_and_stores() -> None:
    access = {"access": {"x": "load", "o": "store"}}
    direct = [seen("a", (1, 7), (1, 2)), seen("a", (1, 7), (1, 2)), seen("b", (3, 0), (3, 4))]
    replay = [
        seen("a", (1, 0), (1, 2), **access),  # what it does not load may differ
        seen("a", (1, 7), (1, 9), **access),
        seen("b", (5, 0), (5, 6), **access),
    ]
    assert launches.fates(direct, replay) == ["identical", "different", "downstream"]
    assert launches.fates(direct[:2], replay) == ["unmatched"] * 3
    assert launches.fates([seen("c", (1, 1), (1, 1))], [seen("c", (1, 1), (1, 1), access={"z": "load"})]) == [
        "unmatched"
    ]


def test_direct_launches_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import autotuner, jit

    class Kernel:
        arg_names = ("x", "o", "n")

        @staticmethod
        def fn() -> None: ...

    def run(kernel: Kernel, x: torch.Tensor, o: tuple[torch.Tensor], n: int, **kwargs: object) -> None:
        o[0].copy_(x * 2)

    monkeypatch.setattr(jit.JITFunction, "run", run)
    monkeypatch.setattr(autotuner.Autotuner, "run", lambda tuner: None)
    watch = launches.Watch("cpu")
    watch.install()
    x, o = torch.arange(6.0)[2:], torch.zeros(4)
    call: Any = jit.JITFunction.run
    call(Kernel(), x, (o,), n=4, grid=(1,), warmup=False)
    assert watch.launches == []
    o.zero_()
    with watch.watching():
        call(Kernel(), x, (o,), n=4, grid=(1,), warmup=False)
    (one,) = watch.launches
    assert one["before"] == {"x": measure.checksums(x), "o.0": measure.checksums(torch.zeros(4))}
    assert one["after"] == {"x": measure.checksums(x), "o.0": measure.checksums(x * 2)}


class DoublingLauncher:
    """A launcher whose kernel writes twice its first argument to its second, four floats on the host."""

    def load(self, image: KernelImage, cubin: bytes) -> Any:
        return "double"

    def launch(
        self, kernel: Any, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        x, o = ((ctypes.c_float * 4).from_address(a) for a in addresses[:2])
        o[:] = [2 * v for v in x]

    def close(self) -> None: ...


def test_replayed_launches_are_watched() -> None:
    x, o = torch.arange(6.0), torch.zeros(4)
    names = (("x", "load", 0, 8), ("o", "store", 1, 0))
    image = KernelImage.model_construct(
        name="double", params=tuple(Param(name=n, type="*fp32", size=8, access=a) for n, a, _, _ in names)
    )
    given = [PointerArg(t="pointer", name=n, type="*fp32", storage=s, offset=at, value=None) for n, _, s, at in names]
    launch = Alternative(kernel="0" * 64, grid=(1, 1, 1), args=tuple(given), config="", before=())
    sizes = tuple(Storage(bytes=n, device="cuda", origin="input") for n in (24, 16))
    launcher = launches.WatchedLauncher(
        DoublingLauncher(), Program.model_construct(storages=sizes), torch.device("cpu")
    )
    addresses = [x.data_ptr() + 8, o.data_ptr(), 0, 0]
    launcher.launch("double", image, launch, addresses, 0)
    assert launcher.launches == []
    o.zero_()
    launcher.on = True
    launcher.launch("double", image, launch, addresses, 0)
    (one,) = launcher.launches
    assert one["access"] == {"x": "load", "o": "store"}
    assert one["before"] == {"x": measure.checksums(x[2:]), "o": measure.checksums(torch.zeros(4))}
    assert one["after"]["o"] == measure.checksums(2 * x[2:])
    direct = {**one, "access": None}
    assert launches.fates([direct], launcher.launches) == ["identical"]


def launch_step(*configs: str) -> LaunchStep:
    made = [Alternative(kernel="0" * 64, grid=(1, 1, 1), args=(), config=c, before=()) for c in configs]
    return LaunchStep(
        kind="launch",
        alternatives=tuple(made),
        line=None,
        autotuned=bool(configs[0]),
        reset_to_zero=(),
        restore_value=(),
    )


def test_the_replay_takes_the_configurations_of_the_direct_run() -> None:
    steps = (launch_step(""), launch_step("B: 1", "B: 2"), launch_step("B: 4"), launch_step("B: 8", "B: 9"))
    program = Program.model_construct(forward=steps)
    assert launches.choose(program, [["k", "B: 2"], ["k", "B: 5"], ["k", "B: 8"]]) == ({1: 1, 3: 0}, 1)
    assert launches.choose(program, []) == ({}, 3)


def test_configurations_agree_across_versions_of_triton() -> None:
    old, new = "B: 64, num_warps: 4, maxnreg: None", "B: 64, num_warps: 4, maxnreg: None, ir_override: None"
    assert launches._same_config(old, new)
    assert not launches._same_config(old, new.replace("64", "32"))


# -- measures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_checksums_see_every_byte(dtype: torch.dtype) -> None:
    tensor = torch.ones(37).to(dtype)
    same = measure.checksums(tensor.clone())
    for i in range(37):
        other = tensor.clone()
        other[i] = 0
        assert measure.checksums(other) != same
    swapped = torch.arange(37).to(torch.float32)
    assert measure.checksums(swapped) != measure.checksums(swapped.flip(0))
    assert measure.checksums(tensor) == same


def test_errors_are_centred_unless_nearly_constant() -> None:
    wanted = torch.rand(1000, dtype=torch.float64) + 100
    error, centred = relative_error(wanted + 1e-3, wanted)
    assert centred
    assert error == pytest.approx(1e-3 / wanted.std(correction=0).item(), rel=1e-6)
    flat = torch.full((1000,), 5.0)
    assert relative_error(flat + 0.5, flat) == (pytest.approx(0.1), False)
    assert relative_error(torch.empty(0), torch.empty(0)) == (0.0, True)


def test_other_non_finite_elements_are_an_infinite_error() -> None:
    wanted = torch.tensor([1.0, math.inf, math.nan, 2.0])
    assert relative_error(wanted.clone(), wanted)[0] == 0.0
    for other in ([1.0, -math.inf, math.nan, 2.0], [math.nan, math.inf, math.nan, 2.0], [1.0, 3.0, math.nan, 2.0]):
        assert relative_error(torch.tensor(other), wanted)[0] == math.inf


def test_outputs_travel_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WHOLE_BYTES", 400)
    monkeypatch.setattr(measure, "SAMPLE_BYTES", 100)
    small, big = torch.rand(10, 10), torch.rand(20, 10).t()
    said = measure.save_outputs([small, big], tmp_path)
    assert [s["stride"] for s in said] == [1, 9]
    assert torch.equal(measure.read_output(said[0], tmp_path / "out0", torch.device("cpu")), small.flatten())
    assert torch.equal(measure.read_output(said[1], tmp_path / "out1", torch.device("cpu")), big.reshape(-1)[::9])
    assert measure.compare([small, big], said, tmp_path) == {
        "shapes": True, "equal": True, "error": 0.0, "within": True,
    }  # fmt: skip
    near = measure.compare([small * (1 + 1e-6), big], said, tmp_path)
    assert (near["equal"], near["within"]) == (False, True)
    assert not measure.compare([small, big + torch.rand(10, 20)], said, tmp_path)["within"]
    assert not measure.compare([big, small], said, tmp_path)["shapes"]
    assert not measure.compare([small], said, tmp_path)["shapes"]


# -- table -----------------------------------------------------------------------------------------


def test_the_table_names_what_needs_a_reader() -> None:
    def case(sample: int, kind: str, ran: bool, **replay: object) -> cases.Case:
        row = Row.model_validate({"folder": "f", "file": name(sample), "problem": "p", "status": "s", "kind": kind})
        direct = cases.Direct.model_validate({"status": "ok", "first_seconds": 1.0 if ran else None})
        found = {"here": cases.Replayed.model_validate(DIFFERS | replay)} if replay else {}
        return cases.Case(id=str(sample), names=(f"f/{name(sample)}",), trace=row, direct=direct, replays=found)

    text = table.report([
        case(0, "untraceable", True),
        case(1, "traced", False),
        case(2, "traced", True, launches={"different": 1}, error=0.5, within=False),
        case(3, "traced", True, equal=True, within=True, graph=False, graph_message="a copy from the host"),
    ])  # fmt: skip
    assert f"Refused, but it runs:\n\n- f/{name(0)}: s" in text
    assert f"- f/{name(1)}: ok" in text
    assert f"- f/{name(2)}: a custom launch differs on equal arguments; error 5.0e-01" in text
    assert f"- f/{name(3)}: not captured: a copy from the host" in text
    assert "compared 2; bit-identical 1; custom launches identical 1; within the yardstick 1" in text
