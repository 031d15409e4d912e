"""Hardware counters of a candidate's kernels, by Nsight Compute over one replay of its plan.

    counted = count(folder, names)        # never fails: `excuse` says why there is nothing
    advice = diagnose(counted)

Clocks are left as they are (`--clock-control none`). Counters need permission: root, CAP_PERFMON or a driver that is
loaded with NVreg_RestrictProfilingToAdminUsers=0. Metric names are those of compute capability 9.0; one that a profiler
does not know is left out. The order of causes follows the table of the profiling guide's sections: roofs first, then
what keeps a kernel from them.
"""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from verifier.gpu.replay_folder import ToolFailed, run_tool
from verifier.plan.schema import Plan
from verifier.verdict import Diagnostic, Record

_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
METRICS: dict[str, str] = {
    "nanoseconds": "gpu__time_duration.sum",
    "dram_bytes": "dram__bytes.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor_percent": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l1_hit_percent": "l1tex__t_sector_hit_rate.pct",
    "l2_hit_percent": "lts__t_sector_hit_rate.pct",
    "registers": "launch__registers_per_thread",
    "blocks_by_registers": "launch__occupancy_limit_registers",
    "blocks_by_shared": "launch__occupancy_limit_shared_mem",
    **{f"stall_{name}": _STALL.format(name) for name in ("long_scoreboard", "short_scoreboard", "barrier", "wait")},
}
"""Our name to Nsight Compute's. Bytes, nanoseconds, percent; stalls in warps that wait per instruction issued."""
MOST_LAUNCHES = 16
SECONDS = 120.0
HIGH, LOW, FEW = 80.0, 60.0, 30.0
"""Percent: at a roof, far from it, few warps."""
_NUMBER = re.compile(r"-?\d[\d,]*(\.\d+)?([eE][+-]?\d+)?")
_UNKNOWN = re.compile(r"(?i)failed to find metric|unknown metric|not available metric")
_REFUSED = "ERR_NVGPUCTRPERM"
_NO_PERMISSION = (
    f"ncu may not read counters here ({_REFUSED}): it needs root, CAP_PERFMON, or a driver loaded with "
    "NVreg_RestrictProfilingToAdminUsers=0"
)


class CounterError(ValueError):
    """The profiler's table is not what it should be. One sentence."""


class Counters(Record):
    """One launch of a kernel."""

    kernel: str
    """Symbol in the cubin."""
    values: dict[str, float]
    """By the names of `METRICS`; those that the profiler could not read are left out."""


class Counted(Record):
    """All launches that were looked at, in order."""

    launches: tuple[Counters, ...] = ()
    excuse: str = Field(default="", max_length=1000)
    """Why there are none. One sentence."""

    @property
    def refused(self) -> bool:
        """Whether nobody may count here, whatever is asked."""
        return self.excuse == _NO_PERMISSION


def count(folder: Path, plan: Plan, *, seconds: float = SECONDS, environ: Mapping[str, str] | None = None) -> Counted:
    """Counters of the plan's own kernels in one replay of the folder, the first `MOST_LAUNCHES` launches."""
    end = time.monotonic() + seconds
    try:
        log = run_tool("ncu", options(plan, METRICS), folder, seconds=seconds, environ=environ)
        if unknown := unknown_metrics(log.text):
            known = {ours: theirs for ours, theirs in METRICS.items() if theirs not in unknown}
            left = max(0.0, end - time.monotonic())
            log = run_tool("ncu", options(plan, known), folder, seconds=left, environ=environ)
        if _REFUSED in log.text:
            raise ToolFailed(_NO_PERMISSION)
        launches = parse(log.text)
        if not launches and log.failure:
            raise ToolFailed(f"the replay under ncu failed: {log.failure}")
        return Counted(launches=launches)
    except (ToolFailed, CounterError) as excuse:
        return Counted(excuse=str(excuse)[:1000])


def unknown_metrics(log: str) -> set[str]:
    """Those of `METRICS` that the profiler says it does not know."""
    said = [line for line in log.splitlines() if _UNKNOWN.search(line)]
    named = " ".join(said)
    return {m for m in METRICS.values() if re.search(rf"(?<![\w.]){re.escape(m.partition('.')[0])}(?!\w)", named)}


def options(plan: Plan, metrics: Mapping[str, str]) -> list[str]:
    """Options of ncu: only the plan's kernels, only between the profiler's start and stop."""
    names = "|".join(sorted({re.escape(image.name) for image in plan.kernels.values()}))
    return [
        "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--profile-from-start", "off",
        "--target-processes", "all", "--kernel-name-base", "mangled", "--kernel-name", f"regex:^({names})$",
        "--launch-count", str(MOST_LAUNCHES), "--metrics", ",".join(metrics.values()),
    ]  # fmt: skip


def parse(log: str) -> tuple[Counters, ...]:
    """The launches in a log with a raw table of base units. Raises CounterError.

    The table: names, units, then one row a launch; metrics that could not be read are empty or `n/a`.
    """
    lines = log.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        said = next((line for line in lines if line.startswith("==ERROR==")), "") or _last(lines)
        raise CounterError(f"ncu gave no table: {said.removeprefix('==ERROR==').strip()[:300] or 'it said nothing'}")
    rows = list(csv.reader(line for line in lines[start:] if not line.startswith("==")))
    header, rows = rows[0], [row for row in rows[1:] if row]
    if len(set(header)) != len(header) or "Kernel Name" not in header:
        raise CounterError("ncu's table has no kernel names, or a column twice")
    if any(len(row) != len(header) for row in rows):
        raise CounterError("a row of ncu's table has another length than its header")
    units = dict(zip(header, rows[0], strict=True)) if rows and not rows[0][0] else {}
    return tuple(_launch(dict(zip(header, row, strict=True)), units) for row in rows if row[0])


_UNITS = {"nanoseconds": {"ns", "nsecond"}, "dram_bytes": {"byte"}}


def _launch(row: Mapping[str, str], units: Mapping[str, str]) -> Counters:
    values: dict[str, float] = {}
    for ours, theirs in METRICS.items():
        text = row.get(theirs, "").strip()
        if text in ("", "n/a", "nan", "-nan", "inf"):
            continue
        if not _NUMBER.fullmatch(text):
            raise CounterError(f"ncu gave {text[:40]!r} for {theirs}")
        if ours in _UNITS and units.get(theirs) not in _UNITS[ours]:
            raise CounterError(f"ncu gave {theirs} in {units.get(theirs, '')[:20]!r}")
        value = float(text.replace(",", ""))
        if not math.isfinite(value):
            raise CounterError(f"ncu gave {text[:40]!r} for {theirs}")
        values[ours] = value
    return Counters(kernel=row["Kernel Name"][:1024], values=values)


def _last(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "")


# -- what the counters mean ------------------------------------------------------------------------


def diagnose(
    counted: Counted, least_bytes: Mapping[str, int], lines: Mapping[str, int | None]
) -> tuple[Diagnostic, ...]:
    """One diagnosis for each kernel, the slowest first. `least_bytes` and `lines`: by symbol, the distinct bytes of a
    launch and where the kernel is defined."""
    slowest: dict[str, Counters] = {}
    for launch in counted.launches:
        known = slowest.get(launch.kernel)
        if known is None or launch.values.get("nanoseconds", 0.0) > known.values.get("nanoseconds", 0.0):
            slowest[launch.kernel] = launch
    ranked = sorted(slowest.values(), key=lambda c: -c.values.get("nanoseconds", 0.0))
    made = []
    for launch in ranked:
        code, advice = next(
            _causes(launch.values, least_bytes.get(launch.kernel, 0)), ("counted", "no cause stands out")
        )
        message = f"kernel `{launch.kernel[:200]}`: {advice}. Counted: {_numbers(launch.values)}"
        line = lines.get(launch.kernel)
        made.append(Diagnostic(severity="advice", code=code, message=message, line=line))
    return tuple(made)


def _causes(v: Mapping[str, float], least: int) -> Iterator[tuple[str, str]]:
    """Causes that the counters show, the strongest first."""
    dram, compute = v.get("dram_percent", 0.0), v.get("sm_percent", 0.0)
    repeats = v.get("dram_bytes", 0.0) / least if least else 0.0
    if dram >= LOW and repeats >= 1.5:
        yield "re-reading", f"DRAM moves {repeats:.1f}x the distinct bytes: fuse, tile, keep data in registers"
    if dram >= HIGH:
        yield "memory-bound", "at the memory roof: stop, or change the algorithm so that fewer bytes move"
    if compute >= HIGH:
        yield "compute-bound", "at the compute roof: less work, or another pipe (tensor cores) helps"
    few = v.get("warps_percent", 100.0) <= FEW
    registers, shared = v.get("blocks_by_registers", math.inf), v.get("blocks_by_shared", math.inf)
    if dram < LOW and compute < LOW and few and min(registers, shared) < math.inf:
        by = "registers" if registers <= shared else "shared"
        hint = "a smaller tile or more warps for it" if by == "registers" else "fewer stages or a smaller tile"
        yield f"low-occupancy-{by}", f"few warps are resident, limited by {by}: {hint}"
    stalls = {k.removeprefix("stall_"): n for k, n in v.items() if k.startswith("stall_")}
    worst = max(stalls, key=stalls.__getitem__, default="")
    if worst and stalls[worst] >= 1.0:
        yield f"stall-{worst.replace('_', '-')}", _STALLS[worst]


_STALLS = {
    "long_scoreboard": "warps wait for global memory: more loads in flight (stages, wider loads, TMA)",
    "short_scoreboard": "warps wait for shared memory: bank conflicts, or too many exchanges between warps",
    "barrier": "warps wait at barriers: fewer synchronisations, or more blocks a multiprocessor",
    "wait": "warps wait for fixed latencies: more independent work in each warp",
}


def _numbers(v: Mapping[str, float]) -> str:
    shown = {
        "nanoseconds": "{:.0f} ns", "dram_bytes": "{:.3g} bytes of DRAM", "dram_percent": "DRAM {:.0f}%",
        "sm_percent": "SM {:.0f}%", "tensor_percent": "tensor pipe {:.0f}%", "warps_percent": "warps {:.0f}%",
        "l1_hit_percent": "L1 hits {:.0f}%", "l2_hit_percent": "L2 hits {:.0f}%", "registers": "{:.0f} registers",
        "stall_long_scoreboard": "long scoreboard {:.1f}", "stall_short_scoreboard": "short scoreboard {:.1f}",
        "stall_barrier": "barrier {:.1f}",
    }  # fmt: skip
    return ", ".join(form.format(v[k]) for k, form in shown.items() if k in v) + "."
