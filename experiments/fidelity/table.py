"""Tables: what the traces said (on screen), and what a GPU machine said of answers and plans (markdown)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from experiments.fidelity.cases import Case, Replayed, cause, kernels_proven, same_reason
from experiments.fidelity.trace import Row


def trace_table(rows: Sequence[Row]) -> Table:
    """Answers and trace seconds per folder, and in it per kind, status and code, the most frequent first."""
    made = Table("folder", "outcome", "code", "answers", "median s", "p90 s")
    for folder in dict.fromkeys(row.folder for row in rows):
        mine = [row for row in rows if row.folder == folder]
        made.add_row(folder, "all", "", *_times(mine))
        for (kind, status, code), _ in Counter(map(_outcome, mine)).most_common():
            same = [r for r in mine if _outcome(r) == (kind, status, code)]
            made.add_row("", f"{kind}: {status}", code, *_times(same))
    return made


def _outcome(row: Row) -> tuple[str, str, str]:
    return row.kind, row.status, row.code or row.twice


def _times(rows: Sequence[Row]) -> tuple[str, str, str]:
    """Count, median and 90th percentile (nearest rank) of the seconds."""
    ordered = sorted(row.seconds for row in rows)
    return str(len(ordered)), f"{statistics.median(ordered):.2f}", f"{quantile(ordered, 9):.2f}"


def quantile(ordered: Sequence[float], tenth: int) -> float:
    """Nearest rank, `tenth` tenths."""
    return ordered[-(-tenth * len(ordered) // 10) - 1]


def report(cases: Sequence[Case]) -> str:
    """The markdown of a GPU run: agreement, causes, times, and every case that needs a reader."""
    parts = [_agreement(cases), _wrong_traces(cases)]
    for label in ("here", "carried"):
        if any(label in c.replays for c in cases):
            parts.append(_replays(cases, label))
    return "\n".join([*parts, _times_table(cases)])


def _agreement(cases: Sequence[Case]) -> str:
    """Trace against direct run, by folder."""
    rows = []
    for folder in (*dict.fromkeys(_folder(c) for c in cases), ""):
        mine = [(c, c.direct) for c in cases if c.direct and folder in ("", _folder(c))]
        late = [c for c, d in mine if d.late]
        ran = [c for c, d in mine if d.ran]
        right = [c for c, d in mine if d.ran and d.right]
        traced = [c for c in ran if c.trace.kind == "traced"]
        failed = [(c, d) for c, d in mine if not d.ran and not d.late]
        refused = [(c, d) for c, d in failed if c.trace.kind != "traced"]
        same = [c for c, d in refused if same_reason(c.trace.message, d.message)]
        share = f"{100 * len(traced) / len(ran):.1f}%" if ran else "-"
        counts = (len(mine), len(ran), len(right), len(traced), share, len(failed), len(refused), len(same), len(late))
        rows.append([folder or "all", *map(str, counts)])
    head = ["folder", "answers", "run", "right", "run and trace", "share", "fail", "fail and refused", "in equal words",
            "not in time"]  # fmt: skip
    return "## Traces against direct runs\n\n" + markdown(head, rows)


def _wrong_traces(cases: Sequence[Case]) -> str:
    """What a person has to read: refused though it runs, traced though it fails, refused in other words."""
    pairs = [(c, c.direct) for c in cases if c.direct]
    refused = [(c, d) for c, d in pairs if c.trace.kind != "traced"]
    told = {
        "Refused, but it runs": [f"{c.names[0]}: {_refusal(c)}" for c, d in refused if d.ran],
        "Traced, but it does not run": [
            f"{c.names[0]}: {d.status} at {d.stage}: {_line(d.message)}"
            for c, d in pairs if c.trace.kind == "traced" and not d.ran
        ],
        "Refused and not run, in other words": [
            f"{c.names[0]}: {_refusal(c)} | {_line(d.message[-160:])}"
            for c, d in refused if not d.ran and not same_reason(c.trace.message, d.message)
        ],
    }  # fmt: skip
    parts = [f"\n{title}:\n\n" + "\n".join(f"- {line}" for line in lines or ["none"]) for title, lines in told.items()]
    return "\n".join(parts)


def _refusal(case: Case) -> str:
    return f"{case.trace.status} {case.trace.code}: {_line(case.trace.message)}"


def _replays(cases: Sequence[Case], label: str) -> str:
    """Causes and figures of the replays of one kind of plan."""
    found = [(c, c.replays[label]) for c in cases if label in c.replays]
    causes = Counter(cause(c.direct, r) for c, r in found)
    made = next((r.versions for _, r in found if r.versions), {})
    title = f"\n## Replays: plans {'traced on this machine' if label == 'here' else 'carried from another machine'}\n"
    said = f"Made by Triton {made.get('triton', '?')}, torch {made.get('torch', '?')}. "
    return "\n".join([title, said + _figures([(c, r) for c, r in found]), "", markdown(
        ["outcome", "plans", "within the yardstick"],
        [[what, str(n), str(sum(bool(r.within) for c, r in found if cause(c.direct, r) == what))]
         for what, n in causes.most_common()]), "", *_strange(found)])  # fmt: skip


def _figures(found: Sequence[tuple[Case, Replayed]]) -> str:
    compared = [r for _, r in found if r.equal is not None]
    counts = [
        ("compared", len(compared)), ("bit-identical", _count(compared, lambda r: r.equal)),
        ("custom launches identical", _count(compared, kernels_proven)),
        ("within the yardstick", _count(compared, lambda r: r.within)),
        ("flags equal", _count(compared, lambda r: not r.other_flags)),
        ("captured as a CUDA graph", _count(compared, lambda r: r.graph)),
        ("other bits from the graph", _count(compared, lambda r: r.graph_equal is False)),
    ]  # fmt: skip
    return "; ".join(f"{what} {n}" for what, n in counts) + "."


def _count(found: Iterable[Replayed], holds: Callable[[Replayed], object]) -> int:
    return sum(bool(holds(r)) for r in found)


def _strange(found: Sequence[tuple[Case, Replayed]]) -> list[str]:
    """One line for each plan that is not bit-identical or could not be captured."""
    lines = []
    for c, r in found:
        why = cause(c.direct, r)
        if why != "bit-identical":
            error = "inf" if r.error is None else f"{r.error:.1e}"
            told = r.message if r.status != "ok" else f"error {error}, launches {r.launches or '-'}"
            lines.append(f"- {c.names[0]}: {why}; {_line(told)}")
        elif r.graph is False:
            lines.append(f"- {c.names[0]}: not captured: {_line(r.graph_message)}")
    return lines


def _times_table(cases: Sequence[Case]) -> str:
    """Medians and ninth deciles over the answers that were replayed and compared."""
    both = [(c.direct, c.replays["here"]) for c in cases if c.direct and "here" in c.replays]
    series: list[tuple[str, list[float | None]]] = [
        ("trace, s", [c.trace.seconds for c in cases]),
        ("direct: first call, s", [d.first_seconds for d, _ in both]),
        ("replay: load, s", [_seconds(r.load_ms) for _, r in both]),
        ("replay: set-up, s", [_seconds(r.setup_ms) for _, r in both]),
        ("replay: first run, s", [_seconds(r.first_ms) for _, r in both]),
        ("replay / direct, least of a few calls", [_ratio(r.times, d.times) for d, r in both]),
        ("graph / direct, least of a few calls", [_ratio(r.graph_times, d.times) for d, r in both]),
    ]
    rows = []
    for name, values in series:
        ordered = sorted(v for v in values if v is not None)
        if ordered:
            rows.append([name, str(len(ordered)), *(f"{v:.3g}" for v in _five(ordered))])
    return "\n## Times\n\n" + markdown(["", "answers", "p10", "median", "p90"], rows)


def _five(ordered: Sequence[float]) -> tuple[float, float, float]:
    return quantile(ordered, 1), statistics.median(ordered), quantile(ordered, 9)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _ratio(a: dict[str, float] | None, b: dict[str, float] | None) -> float | None:
    return a["least_ms"] / b["least_ms"] if a and b and b["least_ms"] > 0 else None


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _folder(case: Case) -> str:
    return case.names[0].partition("/")[0]


def _line(text: str) -> str:
    """One line of at most 160 characters."""
    return " ".join(text.split())[:160]
