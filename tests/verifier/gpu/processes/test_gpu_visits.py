"""The same processes on a real GPU: slots across contexts, what each kind of kernel comes to, and times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.verifier.gpu.processes.conftest import with_cubin
from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request, Visit
from verifier.interpreter.gate import Zygotes
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.timing import Rules
from verifier.verdict import Status

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
N = 1 << 22
DEADLINE = 2.0
STORE = "    tl.store(out + at, value, mask=inside)\n"
LAUNCH = "    kernel[(triton.cdiv(x.numel(), 128),)](x, y, out, x.numel(), BLOCK=128)\n"
SPIN = """\
    turn = tl.atomic_add(y_flag, 0)
    while turn == 0:
        turn = tl.atomic_add(y_flag, 0)
"""

Trace = Callable[[str], tuple[dict[str, Any], dict[str, bytes]]]


@pytest.fixture(scope="module")
def large(problem_text: str) -> Problem:
    """x * 2 + y on N elements."""
    return parse_problem(problem_text.replace('"N": 300', f'"N": {N}'), file="scaled_sum.py", name="scaled_sum")


@pytest.fixture(scope="module")
def trace(zygotes: Zygotes) -> Trace:
    def run(source: str, name: str = "ModelNew", n: int = N) -> tuple[dict[str, Any], dict[str, bytes]]:
        tensor = {"kind": "tensor", "shape": [n], "dtype": "float32", "stride": None}
        workload = {"name": "small", "init": [], "init_kwargs": {}, "inputs": [tensor, tensor]}
        payload = {"source": source, "filename": "f.py", "class": name, "target": "sm_90a", "workloads": [workload]}
        job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
        assert job.outcome == "ok", job.error
        assert job.value["status"] == "ok", job.value
        return job.value["plan"], job.blobs

    return run


@pytest.fixture(scope="module")
def gpu() -> Iterator[GpuWorker]:
    with GpuWorker() as worker:
        yield worker


@pytest.fixture(scope="module")
def judge(
    gpu: GpuWorker, trace: Callable[..., Any], large: Problem, problem_text: str, correct: str
) -> Callable[..., Visit]:
    """Judges the honest candidate with some of its text replaced."""
    base = trace(problem_text, "Model")
    held: dict[str, Any] = {}

    def run(*changes: tuple[str, str], **request: Any) -> Visit:
        source = correct
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        if source not in held:
            held[source] = trace(source)
        asked = {"problem": large, "seed": 11, "workloads": ("small",), "command_seconds": DEADLINE, **request}
        return gpu.visit(Request(**asked), Plans(*held[source], *base))

    run()  # the first visit loads libraries
    return run


def test_a_right_candidate_passes(judge: Callable[..., Visit]) -> None:
    visit = judge()
    assert (visit.status, visit.test.outcome) == (None, "passed"), visit.reason
    assert len({c.draw for c in visit.test.checks}) == 6


FAULTS = {
    "wrong": (((" * 2.0 + ", " * 2.01 + "),), Status.WRONG),
    "before its input": (
        ((STORE, STORE + "    tl.store(x + at - 128, value, mask=at < 128)\n"),),
        Status.OUT_OF_BOUNDS,
    ),
    "illegal address": (
        ((STORE, "    tl.store(out + at.to(tl.int64) + (1 << 42), value, mask=inside)\n"),),
        Status.OUT_OF_BOUNDS,
    ),
    "assert": (
        (("@triton.jit", "@triton.jit(debug=True)"), (STORE, f'    tl.device_assert(value < -1e30, "no")\n{STORE}')),
        Status.RUNTIME_ERROR,
    ),
    "memory": (
        (
            (LAUNCH, "    big = torch.empty(1 << 37, dtype=torch.float32, device=x.device)\n"
                     f"    big.fill_(1)\n{LAUNCH}"),
        ),
        Status.RUNTIME_ERROR,
    ),
    "hang": (
        (
            ("out, n, BLOCK", "out, y_flag, n, BLOCK"),
            (LAUNCH, "    y_flag = torch.zeros(1, dtype=torch.int32, device=x.device)\n"
                     + LAUNCH.replace("x, y, out,", "x, y, out, y_flag,")),
            (STORE, SPIN + STORE),
        ),
        Status.TIMEOUT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_kernel_costs_one_verdict(judge: Callable[..., Visit], gpu: GpuWorker, name: str) -> None:
    changes, status = FAULTS[name]
    visit = judge(*changes)  # also traces it
    assert visit.status is status, visit.reason
    start = time.perf_counter()
    assert judge(*changes).status is status
    again = judge()
    spent = time.perf_counter() - start
    assert again.status is None, again.reason
    assert spent < (DEADLINE if name == "hang" else 0.0) + 2.0


def test_a_truncated_cubin_is_one_sentence(
    judge: Callable[..., Visit], gpu: GpuWorker, trace: Trace, large: Problem, problem_text: str, correct: str
) -> None:
    made = with_cubin(*trace(correct), lambda cubin: cubin[: len(cubin) // 2])
    plans = Plans(*made, *trace(problem_text, "Model"))
    visit = gpu.visit(Request(problem=large, seed=11, workloads=("small",)), plans)
    assert visit.status is Status.REJECTED
    assert visit.reason.startswith("the plan is malformed: ")
    assert "\n" not in visit.reason
    assert judge().status is None


def test_a_slow_reference_is_waited_for(
    gpu: GpuWorker, trace: Callable[..., Any], problem_text: str, correct: str
) -> None:
    """What the judge queues on its stream must be in the slots before the runner starts."""
    line = "        return x * 2.0 + y"
    work = """        m = torch.ones(4096, 4096, dtype=x.dtype, device=x.device)
        for _ in range(20):
            m = m @ m * 0.0
"""
    assert line in problem_text
    text = problem_text.replace(line, f"{work}{line} + m[0, 0]").replace('"N": 300', f'"N": {N}')
    request = Request(problem=parse_problem(text, file="s.py", name="s"), seed=1, workloads=("small",))
    visit = gpu.visit(request, Plans(*trace(correct)))
    assert visit.status is None, visit.reason


def test_candidate_and_base_are_timed_as_graphs(judge: Callable[..., Visit]) -> None:
    visit = judge(timed=("small",), rules=Rules(max_blocks=12, max_seconds=5.0))
    assert visit.status is None, visit.reason
    (timing,) = visit.timings
    assert timing.graphs == (True, True)
    assert timing.decided.candidate_seconds is not None
    assert timing.decided.candidate_seconds < (timing.host_bound_seconds or 0.0)
    bytes_moved = 3 * 4 * N
    assert bytes_moved / timing.decided.candidate_seconds < 30e12  # nothing is faster than L2
    assert timing.decided.thrown.get("above_host", 0) == 0


def test_tensors_of_four_gigabytes(gpu: GpuWorker, trace: Callable[..., Any], problem_text: str, correct: str) -> None:
    n = 1 << 30
    text = problem_text.replace('"N": 300', f'"N": {n}')
    request = Request(problem=parse_problem(text, file="s.py", name="s"), seed=1, workloads=("small",))
    for source, passes in ((correct, True), (correct.replace("mask=inside)\n\n", "mask=at < n - 1)\n\n"), False)):
        visit = gpu.visit(request, Plans(*trace(source, n=n)))
        assert visit.test.outcome == ("passed" if passes else "failed"), visit.reason
        print(visit.seconds)


def test_device_memory_does_not_grow(judge: Callable[..., Visit]) -> None:
    for seed in range(30):  # the judge keeps inputs of the last seeds, up to its limit
        judge(seed=seed, draws=("task", "normal"))
    before = torch.cuda.mem_get_info()[0]
    for seed in range(30):
        assert judge(seed=seed, draws=("task", "normal")).status is None
    assert before - torch.cuda.mem_get_info()[0] < 256 << 20
