"""Tables for people. Estimates and measurements never share a column: each header names its kind."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from textwrap import indent

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from experiments.baselines import BaselineRow
from experiments.doctor import Fact
from verifier.baseline import names
from verifier.problem import Problem
from verifier.timing import WorkloadTiming
from verifier.verdict import Diagnostic, FileRun, Verdict

PIPE_COLUMNS = 160
COLOURS = {"correct": "green", "untested": "yellow"}


def seconds(value: float) -> str:
    """A duration with a fitting unit, three significant digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def speedup(score: float | None, *, live: bool = False) -> str:
    """exp(score) as a factor, or a dash. `live`: the file itself was timed, by the host's clock."""
    return "-" if score is None else f"{math.exp(score):.2f}x" + " live" * live


def interval(timing: WorkloadTiming) -> str:
    """The interval of the speed-up that counts, as factors with its confidence, or a dash; and whether it was measured
    live.
    """
    live = ", live by the host's clock" if timing.path == "live" else ""
    shown = timing.confirmed or timing.decided
    if shown.lower is None or shown.upper is None:
        return f"-{live}"
    return f"{math.exp(shown.lower):.3f} to {math.exp(shown.upper):.3f} ({shown.confidence:.0%}){live}"


def gained(verdict: Verdict) -> str:
    """The speed-up of a verdict and what it rests on: `1.83x, measured and confirmed`; empty without one."""
    if verdict.score is None:
        return ""
    kind = "estimate" if verdict.score_kind == "estimate" else "measured"
    how = {"estimate": "", "measured": " and confirmed" if verdict.confirmed else ", not confirmed"}[kind]
    live = verdict.path == "live"
    return f"{speedup(verdict.score, live=live)}, {kind}{how}" + ", by the host's clock" * live


def file_words(file: FileRun) -> str:
    """How the file ran beside its plan, one sentence."""
    if file.agrees:
        same = "bit by bit" if file.outputs == "bitwise" else "within the limits of correctness"
        graphs = all(t.graphs for t in file.timings)
        aside = ", both as CUDA graphs: what the file's Python takes is not in it" if graphs else ""
        return f"the file itself gives the plan's outputs {same}, in the plan's time{aside}"
    late = [
        f"{t.workload} takes {t.file_seconds / t.plan_seconds - 1:+.1%}" for t in file.timings if not t.within
    ]  # fmt: skip
    said = file.reason or "; ".join(late) or "it has no times"
    return f"the file itself does not do what its plan does ({said}): the plan is what was judged, and what ships"


def visible(text: str) -> str:
    """Control characters as `\\x1b`: a candidate's or a model's text must not drive the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def base_name(verdict: Verdict) -> str:
    """What the verdict's times are compared with, for example `flex, tuned`."""
    base = verdict.compile.base if verdict.compile else None
    return "eager" if base is None else base.name + ", tuned" * base.tuned


def _plain(text: str) -> str:
    return escape(visible(text))


def print_verdict(verdict: Verdict) -> None:
    """The verdict of `verify` for people."""
    console = open_console()
    colour = COLOURS.get(verdict.status, "red")
    console.print(f"[bold {colour}]{verdict.status}[/] at stage {verdict.stage}: {_plain(verdict.reason)}")
    live = ", the file itself run live" if verdict.path == "live" else ""
    console.print(f"candidate {verdict.candidate}  problem {escape(verdict.problem)}  basis {verdict.basis}{live}")
    if gain := gained(verdict):
        console.print(f"speed-up {gain}")
    if verdict.file is not None:
        console.print(f"[{'yellow' if verdict.ships_plan else 'green'}]file:[/] {_plain(file_words(verdict.file))}")
    _diagnostics(console, verdict.diagnostics, said=verdict.reason)
    _checks(console, verdict)
    _kernels(console, verdict)
    _estimates(console, verdict)
    _timings(console, verdict)
    _measured(console, verdict)
    if verdict.profile:
        _diagnostics(console, verdict.profile.diagnosis)
    base = verdict.compile.base if verdict.compile else None
    if base is not None and base.instead:
        console.print(f"[yellow]timed against {base.name}:[/] {_plain(base.instead)}")
    for gap in verdict.isolation:
        console.print(f"[yellow]isolation:[/] {escape(gap)}")
    console.print("seconds  " + "  ".join(f"{stage} {value:.2f}" for stage, value in verdict.seconds.items()))


def open_console() -> Console:
    """Sentences wrap on a terminal and stay one line in a pipe, where tables have room too."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    console.soft_wrap = not console.is_terminal
    return console


def _diagnostics(console: Console, found: Iterable[Diagnostic], said: str = "") -> None:
    """`said` is a message that stands above already."""
    for item in found:
        where = f" line {item.line}" if item.line else ""
        message = "" if item.message == said else f": {_plain(item.message)}"
        if where or message or item.excerpt:
            console.print(f"[bold]{item.severity}[/] {item.code}{where}{message}")
        if item.excerpt:
            console.print(Text(indent(visible(item.excerpt), "    "), style="dim"), soft_wrap=True)


def _checks(console: Console, verdict: Verdict) -> None:
    if not verdict.test or not verdict.test.checks:
        return
    table = Table("workload", "draw", "output", "error", "worst row", "limit", "passed")
    for check in verdict.test.checks:
        shown = ["-" if e is None else f"{e:.2e}" for e in (check.error, check.row_error)]
        table.add_row(
            check.workload, check.draw, str(check.output), *shown, f"{check.limit:.2e}", "yes" if check.passed else "no"
        )
    console.print(table)


def _kernels(console: Console, verdict: Verdict) -> None:
    if not verdict.compile or not verdict.compile.kernels:
        return
    table = Table("kernel", "regs", "spill B", "shared B", "warps", "stages", "occup.", "limiter")
    for k in verdict.compile.kernels:
        numbers = (k.registers, k.spill_bytes, k.shared_bytes, k.num_warps, k.num_stages)
        table.add_row(_plain(k.name), *map(str, numbers), f"{k.occupancy:.0%}", k.limiter)
    console.print(table)


def _clock(timing: WorkloadTiming) -> str:
    """How it was timed where one side is no graph."""
    return "not as graphs" if timing.path == "live" else "by events"


def _timings(console: Console, verdict: Verdict) -> None:
    if not verdict.profile or not verdict.profile.timings:
        return
    base = base_name(verdict)
    over = f"speed-up over {base}"
    table = Table("workload", "measured", base, over, "interval", "blocks", "decision", "flags")
    for timing in verdict.profile.timings:
        shown = timing.confirmed or timing.decided
        flags = " ".join((*shown.flags, *(() if all(timing.graphs) else (_clock(timing),))))
        times = (_microseconds(t) for t in (shown.candidate_seconds, shown.base_seconds))
        table.add_row(
            timing.workload, *times, speedup(shown.log_ratio, live=timing.path == "live"), interval(timing),
            str(shown.blocks), shown.decision + (", confirmed" if timing.confirmed else ""), flags,
        )  # fmt: skip
    console.print(table)


def _measured(console: Console, verdict: Verdict) -> None:
    """The steps that take the most time, against the measured ceilings."""
    measured = verdict.profile.measured if verdict.profile else None
    for workload in measured.workloads if measured else ():
        table = Table(
            "step", "line", f"measured on {workload.workload}", "share", "TB/s", "of copy", "TFLOP/s", "of peak"
        )
        for step in sorted(workload.steps, key=lambda s: -s.seconds)[:12]:
            name = _plain(step.name) if step.custom else f"aten::{step.name}"
            rates = (f"{step.bytes_rate / 1e12:.3g}", f"{step.memory_share:.0%}", f"{step.flops_rate / 1e12:.3g}")
            table.add_row(name, str(step.line or "-"), _microseconds(step.seconds), f"{step.share:.0%}", *rates,
                          f"{step.compute_share:.0%}")  # fmt: skip
        console.print(table)
        console.print(
            f"{len(workload.steps)} steps, {_microseconds(workload.seconds)} in all; "
            f"starting kernels takes {workload.gap_share:.0%} ({_microseconds(workload.launch_seconds)} each)"
        )


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.1f} us"


def _estimates(console: Console, verdict: Verdict) -> None:
    if not verdict.profile or not verdict.profile.estimates:
        return
    table = Table("workload", "estimate", "eager, estimate", "ratio, estimate", "bound by")
    for e in verdict.profile.estimates:
        bound = max(e.launches, key=lambda part: part.seconds).bound if e.launches else "-"
        ratio = f"{e.base_seconds / e.seconds:.2f}x" if e.base_seconds else "-"
        table.add_row(e.workload, seconds(e.seconds), seconds(e.base_seconds) if e.base_seconds else "-", ratio, bound)
    console.print(table)


def print_baselines(rows: Sequence[BaselineRow]) -> None:
    """The rows of `baseline`."""
    console, known = open_console(), [row for row in rows if row.kind]
    if known:
        kind = known[0].kind
        table = Table("baseline", "workload", str(kind), f"eager, {kind}", "speed-up", "interval", "notes")
        for row in known:
            interval = "-" if row.lower is None or row.upper is None else f"{row.lower:.3f} to {row.upper:.3f}"
            times = ["-" if t is None else seconds(t) for t in (row.seconds, row.eager_seconds)]
            notes = ["primary"] * row.primary + ["tuned"] * row.tuned
            notes += ["by events"] * (row.graphs is not None and not all(row.graphs))
            ratio = "-" if row.speedup is None else f"{row.speedup:.2f}x"
            table.add_row(row.baseline, row.workload, *times, ratio, interval, ", ".join(notes))
        console.print(table)
    for row in rows:
        if row.kind is None:
            console.print(f"[bold]{row.baseline}[/] has no time: {_plain(row.reason)}")


def print_problems(rows: Iterable[tuple[str, str]]) -> None:
    table = Table("problem", "title")
    for name, title in rows:
        table.add_row(name, title)
    open_console().print(table)


def print_problem(problem: Problem) -> None:
    console = open_console()
    console.print(f"[bold]{problem.name}[/]  {escape(problem.title)}")
    console.print(f"precision {problem.precision}  baseline {problem.baseline}  library {problem.library}")
    console.print(f"baselines: {', '.join(names(problem))}")
    for name, reason in problem.excuses.items():
        console.print(f"no baseline {name}: {_plain(reason)}")
    table = Table("workload", "roles", "constants", "weight")
    for w in problem.workloads:
        constants = ", ".join(f"{k}={v!r}" for k, v in w.constants.items())
        table.add_row(w.name, ", ".join(sorted(w.roles)), constants, f"{w.weight:g}")
    console.print(table)
    console.print(Syntax(problem.source, "python", line_numbers=True, background_color="default"))


def print_doctor(facts: Iterable[Fact]) -> None:
    table = Table("state", "what", "fact")
    colours = {"ok": "green", "limited": "yellow", "missing": "red"}
    for fact in facts:
        table.add_row(f"[{colours[fact.state]}]{fact.state}[/]", fact.name, escape(fact.text))
    open_console().print(table)
