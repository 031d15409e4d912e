"""Do the verdicts made without a GPU hold on one? Runs the judged candidates of some runs directly on the GPU here.

    python -m experiments.agreement runs/a runs/b --out agreement.json [--seconds 300]

This is a check of the judge, not a judge: each candidate's own Python runs in a child process beside the reference,
which is what the judge exists to avoid. Use it on candidates that you trust, such as the sampler's.

For every candidate and timed workload: the output for the task's own inputs against PyTorch's, and, while `--seconds`
last, the time of candidate and eager reference by Triton's `do_bench` (median, L2 flushed). The table counts verdict
against direct result and compares estimates with times.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from queue import Empty
from typing import Any

from rich.console import Console
from rich.table import Table

from agent.record import load_run
from verifier.problem import Problem, Role, Workload
from verifier.verdict import Record, Verdict

CHILDREN = 8
RUN_SECONDS = 60.0
LIMIT = 1e-2
"""Largest error of a right output: the floor of the fp16 and bf16 contracts."""


class Row(Record):
    """One candidate on one workload. `error` is None where nothing could be compared; times are in seconds."""

    run: str
    attempt: str
    candidate: str
    workload: str
    status: str
    reason: str
    estimate: float | None
    base_estimate: float | None
    right: bool = False
    fault: str = ""
    """Exception of the direct run, or why the output is wrong."""
    error: float | None = None
    time: float | None = None
    base_time: float | None = None


def cases(run: Path) -> Iterator[tuple[Row, Problem, Workload, str]]:
    """Every judged candidate of a run with each timed workload; equal sources once."""
    record = load_run(run)
    problem, seen = record.manifest.problem, set[str]()
    for attempt in record.attempts:
        for turn in attempt.turns:
            source = record.source(turn)
            if source is None or turn.verdict is None or turn.candidate in seen:
                continue
            seen.add(turn.candidate or "")
            for workload in problem.having(Role.TIMED):
                row = _row(record.manifest.run, attempt.id, turn.verdict, workload.name)
                yield row, problem, workload, source


def _row(run: str, attempt: str, verdict: Verdict, workload: str) -> Row:
    estimates = {e.workload: e for e in (verdict.profile.estimates if verdict.profile else ())}
    found = estimates.get(workload)
    return Row(
        run=run,
        attempt=attempt,
        candidate=verdict.candidate,
        workload=workload,
        status=str(verdict.status),
        reason=verdict.reason[:300],
        estimate=found.seconds if found else None,
        base_estimate=found.base_seconds if found else None,
    )


def direct(problem: Problem, workload: Workload, source: str, timed: bool, answer: Any) -> None:
    """Runs in a child: compares, or times, and puts a dict of `Row` fields into the queue `answer`."""
    try:
        answer.put(_direct(problem, workload, source, timed))
    except BaseException as error:  # noqa: BLE001 - the candidate's own code: whatever it raises is the result
        answer.put({"fault": f"{type(error).__name__}: {str(error)[:300]}"})


def _direct(problem: Problem, workload: Workload, source: str, timed: bool) -> dict[str, Any]:
    import torch

    from verifier.loader import materialize

    module = materialize(problem, workload)
    candidate = _imported(source)
    torch.manual_seed(0)
    init = module.get_init_inputs()
    reference, new = module.Model(*init).cuda(), candidate.ModelNew(*init).cuda()
    torch.manual_seed(1)
    given = [x.cuda() if isinstance(x, torch.Tensor) else x for x in module.get_inputs()]
    with torch.no_grad():
        return _times(reference, new, given) if timed else _compared(reference, new, given)


def _imported(source: str) -> Any:
    """The candidate as a module with a file, which Triton reads again for the text of its kernels."""
    with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False) as file:
        file.write(source)
    spec = spec_from_file_location("candidate", file.name)
    if spec is None or spec.loader is None:
        raise ImportError(file.name)
    module = module_from_spec(spec)
    sys.modules["candidate"] = module
    spec.loader.exec_module(module)
    return module


def _times(reference: Any, new: Any, given: list[Any]) -> dict[str, Any]:
    from triton.testing import do_bench

    ours, base = (do_bench(lambda f=f: f(*given), warmup=25, rep=150, return_mode="median") for f in (new, reference))
    return {"time": ours / 1e3, "base_time": base / 1e3}


def _compared(reference: Any, new: Any, given: list[Any]) -> dict[str, Any]:
    """Centred relative error, whole and of the worst row, against PyTorch's own result, computed in float64."""
    import torch

    native, output = reference(*given), new(*given)
    torch.cuda.synchronize()
    if output.shape != native.shape or output.dtype != native.dtype:
        return {"fault": f"shape or dtype: {tuple(output.shape)} {output.dtype}"}
    if not torch.isfinite(output).all():
        return {"fault": "values that are not finite", "error": math.inf}
    exact, found = (t.double().reshape(-1, t.shape[-1]) for t in (native, output))
    spread = exact - exact.mean()
    error = float((found - exact).norm() / spread.norm())
    row = float(((found - exact).norm(dim=1) / spread.norm(dim=1)).max())
    right = max(error, row) <= LIMIT
    return {"right": right, "fault": "" if right else f"error {error:.1e}, worst row {row:.1e}", "error": error}


def in_child(problem: Problem, workload: Workload, source: str, timed: bool) -> dict[str, Any]:
    """`direct` in a process of its own, ended after RUN_SECONDS."""
    answer: Any = multiprocessing.Queue()
    child = multiprocessing.Process(target=direct, args=(problem, workload, source, timed, answer))
    child.start()
    try:
        found: dict[str, Any] = answer.get(timeout=RUN_SECONDS)
    except Empty:
        found = {"fault": f"no answer within {RUN_SECONDS:.0f} s"}
    child.join(2)
    child.kill()
    return found


def measure(runs: Sequence[Path], seconds: float) -> list[Row]:
    """Compares every case, several at a time, then times the right ones one by one while `seconds` last."""
    found = [case for run in runs for case in cases(run)]
    with ThreadPoolExecutor(CHILDREN) as pool:
        results = pool.map(lambda case: in_child(case[1], case[2], case[3], timed=False), found)
        rows = [case[0].model_copy(update=result) for case, result in zip(found, results, strict=True)]
    print(f"{len(rows)} direct runs compared", flush=True)
    end = time.monotonic() + seconds
    for i, (_, problem, workload, source) in enumerate(found):
        if rows[i].right and rows[i].estimate and time.monotonic() < end:
            times = in_child(problem, workload, source, timed=True)
            rows[i] = rows[i].model_copy(update={k: v for k, v in times.items() if k != "fault"})
    return rows


def show(rows: Sequence[Row]) -> None:
    """Prints the tables of the module docstring."""
    console = Console(width=160)
    table = Table("verdict without a GPU", "direct run right", "direct run wrong", "direct run failed")
    counts = Counter((r.status, "right" if r.right else "wrong" if r.error is not None else "failed") for r in rows)
    for status in sorted({r.status for r in rows}):
        table.add_row(status, *(str(counts[status, how]) for how in ("right", "wrong", "failed")))
    console.print(table)
    for row in rows:
        if (row.status == "correct") != row.right:
            console.print(
                f"{row.run} {row.attempt} {row.workload} {row.status}: {row.reason} | direct: {row.fault or 'right'}"
            )
    ratios = sorted(r.estimate / r.time for r in rows if r.time and r.estimate)
    bases = sorted(r.base_estimate / r.base_time for r in rows if r.base_time and r.base_estimate)
    for name, values in (("candidates", ratios), ("eager references", bases)):
        if values:
            ends = (values[len(values) // 10], values[-1 - len(values) // 10])
            console.print(
                f"estimate / measured, {name}: n {len(values)}, median {statistics.median(values):.2f}, "
                f"p10 {ends[0]:.2f}, p90 {ends[1]:.2f}"
            )
    for run, workload in sorted({(r.run, r.workload) for r in rows}):
        timed = [r for r in rows if (r.run, r.workload) == (run, workload) and r.time and r.estimate]
        if len(timed) >= 4:
            chosen = min(timed, key=lambda r: r.estimate or math.inf).time or 0.0
            fastest = min(r.time or math.inf for r in timed)
            console.print(
                f"{run} {workload}: {len(timed)} timed, rank correlation {_rank_correlation(timed):.2f}, "
                f"fastest {fastest * 1e3:.3f} ms, fastest by estimate {chosen * 1e3:.3f} ms"
            )


def _rank_correlation(rows: Sequence[Row]) -> float:
    """Spearman's rank correlation of estimate and time."""
    estimates, times = (_ranks([getattr(r, name) for r in rows]) for name in ("estimate", "time"))
    return statistics.correlation(estimates, times)


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [float(order.index(value)) for value in values]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write all rows as JSON")
    parser.add_argument("--seconds", type=float, default=300.0, help="most wall seconds for timing")
    args = parser.parse_args(argv)
    import torch
    import triton

    multiprocessing.set_start_method("fork")
    rows = measure(args.runs, args.seconds)
    if args.out:
        args.out.write_text(json.dumps([row.model_dump() for row in rows], indent=1))
    show(rows)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
