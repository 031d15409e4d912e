"""The report of a run: one HTML file that needs no network and refuses to load anything.

It renders what `agent.record` reads and adds no number. All text is escaped; markup comes from the template, the
chart and the highlighter alone, and a content security policy forbids every other script.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers.diff import DiffLexer
from pygments.lexers.python import PythonLexer

from agent.blobs import write_atomic
from agent.budget import AXES
from agent.record import Attempt, RunRecord, Turn, load_run
from agent.run_folder import RunFolder
from experiments.report.chart import Point, draw
from experiments.tables import base_name, file_words, gained, interval, seconds, speedup
from tools.metering import Charge
from verifier.timing import WorkloadTiming
from verifier.verdict import Verdict

_SOURCE = HtmlFormatter(style="friendly", cssclass="code", linenos="inline")
_DIFF = HtmlFormatter(style="friendly", cssclass="code")
_SCRIPT = (
    "function show(){var e=document.getElementById(location.hash.slice(1));"
    "if(e&&e.tagName==='DETAILS'){e.open=true;e.scrollIntoView()}}addEventListener('hashchange',show);show()"
)
"""Opens the attempt that a link leads to."""
_TONES = {"correct": "correct", "untested": "untested", "waiting": "waiting", "in_flight": "in_flight"}


def write_report(folder: RunFolder, out: Path | None = None) -> Path:
    """Writes the report to `out` or RUN/report.html and returns its path. Raises StorageError."""
    path = out or folder.path / "report.html"
    write_atomic(path, render(load_run(folder.path)).encode())
    return path


def render(record: RunRecord) -> str:
    """HTML text of one run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    environment.filters |= {
        "tone": lambda status: _TONES.get(str(status), "failed"),
        "interval": interval,
        "factor": speedup,
        "file_words": file_words,
        "sci": lambda value: "-" if value is None else f"{value:.2e}",
        "seconds": seconds,
    }
    manifest = record.manifest
    ended = sorted((a for a in record.attempts if a.order is not None), key=lambda a: a.order or 0)
    points = [
        Point(id=a.id, parents=a.parents, status=str(a.status), score=a.score, leads=a.confirmed or not record.measured)
        for a in ended
    ]
    return environment.get_template("report.html.j2").render(
        title=f"{manifest.problem.name} - {manifest.run}",
        problem=manifest.problem,
        notes=_notes(record),
        cards=_cards(record),
        score_kind=_score_kind(record),
        base=_base(record),
        chart=draw(points),
        budget=[_budget_row(record, axis) for axis in AXES],
        budget_note=_budget_note(record),
        leases=_leases(record),
        closed=(*record.refunds, *record.lost),
        outcomes=Counter(str(a.status or a.state) for a in record.attempts).most_common(),
        best=_best(record),
        attempts=[_attempt(record, a) for a in record.attempts],
        manifest=manifest.model_dump_json(indent=2),
        highlight_css=Markup(str(_DIFF.get_style_defs(".code"))),  # type: ignore[no-untyped-call]
        script=Markup(_SCRIPT),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode(),
    )


def _notes(record: RunRecord) -> list[str]:
    notes = []
    if not record.manifest.model.is_language_model:
        notes.append("The model of this run is the template sampler. It is not a language model.")
    if record.renewed or record.pending:
        waiting = f"; {record.pending} more wait for it and have no score" if record.pending else ""
        notes.append(
            f"The run was begun without a GPU. What it had kept was judged anew on {record.device}: {record.renewed} "
            f"verdicts{waiting}. No estimate stands beside a measurement."
        )
    if len(record.devices) > 1:
        notes.append(
            f"This run measured on different GPUs: {', '.join(record.devices)}. Their speed-ups compare only roughly."
        )
    notes += [
        f"The target is {record.manifest.target.name}, and times were measured on {name}."
        for name in record.devices if name != record.manifest.target.facts.get("device", name)
    ]  # fmt: skip
    if not record.measured:
        notes.append(
            "No GPU took part. Correctness is that of Triton's interpreter on small inputs; "
            "every time is an analytic estimate for the target, none is a measurement."
        )
    bases = dict.fromkeys(v.compile.base for v in _scored(record) if v.compile and v.compile.base)
    notes += [f"Times are compared with {b.name}: {b.instead}." for b in bases if b.instead]
    notes += [f"Isolation: {gap}" for gap in record.manifest.isolation]
    notes += [f"Budget excess: {text}" for text in record.excess]
    notes += [f"Fault of the machinery, refunded: {text}" for text in record.faults]
    estimated = sum(1 for a in record.attempts for t in a.turns if t.charge.usage.estimated)
    if estimated:
        notes.append(f"Token counts of {estimated} calls are estimated; the model did not report them.")
    return notes


def _score_kind(record: RunRecord) -> str:
    return "measured" if record.measured else "estimate"


def _scored(record: RunRecord) -> list[Verdict]:
    judged = [t.verdict for a in record.attempts for t in a.turns if t.verdict and t.verdict.score is not None]
    return [v for v in judged if v.score_kind == _score_kind(record)]


def _base(record: RunRecord) -> str:
    """What the scores are over."""
    named = dict.fromkeys(base_name(v) for v in _scored(record))
    return " and ".join(named) or "the reference"


def _cards(record: RunRecord) -> list[tuple[str, str]]:
    manifest = record.manifest
    best = speedup(record.attempt(record.best).score, live=record.attempt(record.best).live) if record.best else "-"
    kind = "measured and confirmed" if record.measured else "estimate"
    return [
        (best, f"best over {_base(record)}, {kind}"),
        (f"{sum(1 for a in record.attempts if a.status == 'correct')} of {len(record.attempts)}", "attempts correct"),
        (manifest.strategy, f"strategy, width {manifest.width}, seed {manifest.seed}"),
        (manifest.model.name, f"model {manifest.model.model}".strip()),
        (manifest.target.name, manifest.target.facts.get("device", "target")),
        (f"{record.wall_seconds / 60:.1f} min", f"wall time over {record.sessions} session(s)"),
        (record.stop_reason or "unfinished", str(record.stop["detail"]) if record.stop else "no session ended it"),
    ]


def _budget_row(record: RunRecord, axis: str) -> dict[str, Any]:
    cap = record.manifest.budget.caps.get(axis)  # type: ignore[call-overload]
    spent = record.wall_seconds if axis == "wall_seconds" else _amount(record.spent, axis)
    return {
        "axis": axis,
        "cap": "-" if cap is None else f"{cap:,.6g}",
        "spent": f"{spent:,.6g}",
        "reserved": f"{_amount(record.reserved, axis):,.6g}",
        "share": None if cap is None else min(spent / cap, 1.0),
    }


def _amount(charge: Charge, axis: str) -> float:
    return float(charge.usage.tokens if axis == "tokens" else getattr(charge, axis))


def _budget_note(record: RunRecord) -> str:
    usage = record.spent.usage
    reasoning = "not reported" if usage.reasoning is None else f"{usage.reasoning:,}"
    return (
        f"Tokens: {usage.uncached:,} uncached, {usage.cached:,} cached, {usage.output:,} output, "
        f"of it reasoning {reasoning}. "
        f"Refunds: {len(record.refunds)}. Lost in flight and charged: {len(record.lost)}."
    )


def _leases(record: RunRecord) -> list[tuple[str, int, str]]:
    """What leased GPU seconds went into: name, leases, seconds."""
    found: dict[str, list[float]] = {}
    for turn in (turn for attempt in record.attempts for turn in attempt.turns):
        for call, spent in turn.gpu.items():
            found.setdefault(f"{call}, judged anew" if turn.anew else call, []).append(spent)
    return [(name, len(spent), f"{sum(spent):.2f}") for name, spent in found.items()]


def _best(record: RunRecord) -> dict[str, Any] | None:
    if record.best is None:
        return None
    attempt = record.attempt(record.best)
    turn = _judged(attempt)
    source = record.source(turn) or ""
    return {
        "id": attempt.id,
        "speedup": gained(turn.verdict) if turn.verdict else speedup(attempt.score, live=attempt.live),
        "timings": _timings(turn),
        "file_run": turn.verdict.file if turn.verdict else None,
        "file": f"best/{record.folder.best_file().name}",
        "source": _code(source),
    }


def _timings(turn: Turn | None) -> Sequence[WorkloadTiming]:
    return turn.verdict.profile.timings if turn and turn.verdict and turn.verdict.profile else ()


def _judged(attempt: Attempt) -> Turn:
    return next((t for t in reversed(attempt.turns) if t.verdict is not None), attempt.turns[-1])


def _attempt(record: RunRecord, attempt: Attempt) -> dict[str, Any]:
    last = _judged(attempt) if attempt.turns else None
    return {
        "id": attempt.id,
        "operator": attempt.operator,
        "parents": attempt.parents,
        "status": attempt.status or attempt.state,
        "speedup": speedup(attempt.score, live=attempt.live),
        "intervals": "; ".join(interval(t) for t in _timings(last)) if attempt.score is not None else "",
        "confirmed": attempt.confirmed,
        "gpu": sum(sum(t.gpu.values()) for t in attempt.turns),
        "calls": sum(t.charge.calls for t in attempt.turns),
        "tokens": f"{sum(t.charge.usage.tokens for t in attempt.turns):,}",
        "reason": (last.verdict.reason if last and last.verdict else "") or attempt.note,
        "turns": [_turn(record, attempt, number) for number in range(len(attempt.turns))],
    }


def _turn(record: RunRecord, attempt: Attempt, number: int) -> dict[str, Any]:
    turn = attempt.turns[number]
    request, completion, source = record.request(turn), record.completion(turn), record.source(turn)
    old, origin = _origin(record, attempt, number)
    kind = "the given candidate" if request is None else "answer" if number == 0 else "repair"
    return {
        "title": f"{turn.request}: {kind}",
        "verdict": turn.verdict,
        "feedback": turn.feedback,
        "prompt": "\n\n".join(f"[{m.role}]\n{m.content}" for m in request.messages) if request else "",
        "answer": (f"[reasoning]\n{completion.reasoning}\n\n" if completion.reasoning else "") + completion.text
        if completion
        else "",
        "source": _code(source) if source else "",
        "diff": _diff(old, source) if old and source else "",
        "diff_from": origin,
    }


def _origin(record: RunRecord, attempt: Attempt, number: int) -> tuple[str | None, str]:
    """What a turn's source is compared with: the turn before, else the first parent's last source."""
    if number > 0:
        return record.source(attempt.turns[number - 1]), attempt.turns[number - 1].request
    for parent in attempt.parents:
        for turn in reversed(record.attempt(parent).turns):
            if turn.source:
                return record.source(turn), parent
    return None, ""


def _code(source: str) -> Markup:
    return Markup(highlight(source, PythonLexer(), _SOURCE))


def _diff(old: str, new: str) -> Markup:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "before", "after", lineterm="", n=2)
    return Markup(highlight("\n".join(lines), DiffLexer(), _DIFF))
