"""The Python API, of the same power as the commands: `solve`, `verify`, `open_run`.

    from experiments import solve, verify
    verdict = verify("attention/causal", "my_kernel.py")
    solution = solve(my_function, inputs=[torch.randn(64, 512)], budget="calls=8")

A problem is a name, a path, a loaded `Problem`, or a plain function with example inputs.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from agent.budget import Budget, refuse_endless
from agent.prompting import Prompts
from agent.record import RunRecord, load_run
from agent.run_folder import Manifest, RunFolder, TargetFacts, best_name
from experiments.function_problem import problem_from_function
from experiments.suites import resolve
from strategies import make_strategy
from tools.models import make_model
from tools.models.base import Prices, Sampling
from verifier.baseline import kept_tuned
from verifier.candidate import Candidate
from verifier.errors import UsageError
from verifier.gpu.bench import GpuBench
from verifier.gpu.found import Fit, choose_target, chosen_gpus, visible_gpus
from verifier.gpu.nvml import describe
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge, open_zygotes, versions
from verifier.problem import Problem
from verifier.sandbox.zygote import isolation_gaps
from verifier.target import Target
from verifier.verdict import Record, Verdict

_LIVE_SECONDS = 300.0
"""Of a live visit of `verify`, where no lease runs: extensions take their time to build."""
AnyProblem = str | Path | Problem | Callable[..., Any]


class Solution(Record):
    """The end of a search. `source` and `verdict` are the best candidate's, None when nothing was correct."""

    folder: Path
    reason: str
    """Why the search ended: strategy, budget, waiting, interrupted or excess."""
    source: str | None
    verdict: Verdict | None
    attempts: int


def verify(
    problem: AnyProblem,
    candidate: str | Path,
    *,
    inputs: Sequence[Any] | None = None,
    seed: int | None = None,
    kernelbench: Path | None = None,
    target: str = "auto",
    gpus: str = "auto",
    deep: bool = False,
    zygotes: Zygotes | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Judges one candidate, given as a path or as source text. Raises UsageError, ProblemError or InfrastructureError.

    `inputs` are example inputs when `problem` is a function. `seed` fixes the secret inputs. `gpus` is `auto`, `none`
    or a list of which the first one measures: there, what is correct is confirmed on fresh inputs and its file is run
    beside its plan; `deep` adds hardware counters and the sanitizer. `target` is `auto` or a target's name; `warn` is
    told where it is another device than the GPU. `zygotes` are warm servers from `verifier.judge.open_zygotes`, for
    many calls in a row; without them each call starts its own.
    """
    known = as_problem(problem, inputs, kernelbench)
    source = _source(candidate)
    devices = chosen_gpus(gpus)
    fit = fitting(target, devices)
    if fit.warning:
        warn(fit.warning)
    secret = secrets.randbits(62) if seed is None else seed
    with nullcontext(zygotes) if zygotes else open_zygotes() as servers:
        tuned = kept_tuned(known, fit.target.name) if devices else None
        judge = Judge(
            known, servers, target=fit.target.name, seed=secret, measured=bool(devices), figures=fit.figures.name,
            tuned=tuned,
        )  # fmt: skip
        judge.prepare()
        if not devices:
            return judge.judge(Candidate(source=source))
        with closing(GpuBench(known, secret, devices[0], live_seconds=_LIVE_SECONDS)) as device:
            further = (device.confirm, device.compare_file, *([device.examine] if deep else []))
            return judge.judge(Candidate(source=source), device.visit, *further)


def solve(
    problem: AnyProblem,
    *,
    inputs: Sequence[Any] | None = None,
    workers: int | None = None,
    fleet: str = "local",
    gpus: str = "auto",
    quiet: bool = True,
    zygotes: Zygotes | None = None,
    **options: Any,
) -> Solution:
    """Searches for a kernel. `options` are those of `prepare`: model, strategy, budget, seed and the rest. `fleet` says
    where it is judged: `local`, `ray`, `ray:auto` or `ray://HOST:PORT`; it decides no result. `gpus` (`auto`, `none` or
    a list) decides whether times are measured.

    Raises UsageError, ProblemError, ModelError or InfrastructureError. Not for use inside a running event loop.
    """
    from experiments.session import run_search

    folder = prepare(problem, inputs=inputs, gpus=gpus, **options)
    summary = run_search(folder, workers=workers, fleet=fleet, gpus=gpus, quiet=quiet, zygotes=zygotes)
    record = load_run(folder.path)
    turn = _last_judged(record, record.best) if record.best else None
    return Solution(
        folder=folder.path,
        reason=str(summary.reason),
        source=record.source(turn) if turn else None,
        verdict=turn.verdict if turn else None,
        attempts=summary.ended,
    )


def prepare(
    problem: AnyProblem,
    *,
    inputs: Sequence[Any] | None = None,
    model: str = "sampler",
    models_file: Path | None = None,
    strategy: str = "beam",
    budget: str = "calls=24,minutes=15",
    seed: int = 0,
    width: int = 4,
    max_repairs: int = 1,
    init: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    kernelbench: Path | None = None,
    target: str = "auto",
    gpus: str = "auto",
    deep: bool = True,
) -> RunFolder:
    """Checks every choice and makes the run folder; nothing is spent. `deep`: each new best of a measured run is looked
    at by hardware counters and sanitizer. Raises UsageError before anything is written.
    """
    known = as_problem(problem, inputs, kernelbench)
    if width < 1 or max_repairs < 0:
        raise UsageError("--width is at least 1 and --max-repairs at least 0")
    make_strategy(strategy)
    devices, caps = chosen_gpus(gpus), Budget.parse(budget)
    chosen = fitting(target, devices).target
    path = out or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{best_name(known.name)}"
    profile = make_model(model, folder=path, models_file=models_file).profile
    measured = bool(devices)
    refuse_endless(caps, [profile.prices], measured=measured)
    _refuse_other_files(path)
    if caps.dollars is not None and profile.is_language_model and profile.prices == Prices():
        raise UsageError(
            f"dollars cannot be capped: the profile {profile.name} has no prices",
            next_step="give `prices` in a file of your own: --models FILE",
        )
    manifest = Manifest(
        run=path.resolve().name,
        problem=known,
        problem_id=known.id,
        model_spec=model,
        model=profile,
        strategy=strategy,
        budget=caps,
        seed=seed,
        width=width,
        max_repairs=max_repairs,
        sampling=Sampling(max_tokens=profile.max_tokens),
        target=_facts(chosen),
        measured=measured,
        examine=deep,
        tuned=kept_tuned(known, chosen.name) if measured else None,
        versions=versions(),
        prompts=Prompts().digest,
        isolation=isolation_gaps(),
        machine={"kernel": platform.release(), "processor": platform.machine(), "cores": str(os.cpu_count())},
    )
    first = _source(init) if init else None
    if overwrite and (path / "manifest.json").exists():
        shutil.rmtree(path)
    return RunFolder.create(path, manifest, init=first)


def fitting(target: str, devices: Sequence[str]) -> Fit:
    """The target for the GPUs that measure, or where none does for the one that is here. Raises UsageError."""
    here = devices or visible_gpus()
    return choose_target(target, describe(here[0]) if here else None, measured=bool(devices))


def open_run(path: Path) -> RunFolder:
    """A run folder that exists. Raises UsageError or StorageError."""
    return RunFolder.open(path)


def as_problem(problem: AnyProblem, inputs: Sequence[Any] | None = None, kernelbench: Path | None = None) -> Problem:
    """The loaded problem. Raises UsageError for an unknown name and ProblemError for a broken file."""
    if isinstance(problem, Problem):
        return problem
    if isinstance(problem, str | Path):
        return resolve(str(problem), kernelbench)
    if inputs is None:
        raise UsageError("a function needs example inputs", next_step="pass inputs=[...]")
    return problem_from_function(problem, inputs)


def _source(candidate: str | Path) -> str:
    """Source text of a path; a text with a line break is taken as source."""
    if isinstance(candidate, str) and "\n" in candidate:
        return candidate
    try:
        return Path(candidate).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{candidate} cannot be read: {reason}", next_step="name a Python file") from None


def _refuse_other_files(path: Path) -> None:
    """A run gets a folder of its own. Raises UsageError."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", next_step="name a new folder with --out")
    if path.is_dir() and any(path.iterdir()) and not (path / "manifest.json").exists():
        raise UsageError(f"{path} holds other files and no run", next_step="name a new folder with --out")


def _last_judged(record: RunRecord, attempt: str) -> Any:
    return next(turn for turn in reversed(record.attempt(attempt).turns) if turn.verdict is not None)


def _facts(target: Target) -> TargetFacts:
    """What a prompt says about the target."""
    facts = {
        "device": target.device_name,
        "architecture": target.arch,
        "multiprocessors": str(target.sms),
        "shared memory per block": f"{target.shared_per_block} bytes",
        "shared memory per multiprocessor": f"{target.shared_per_sm} bytes",
        "registers per multiprocessor": f"{target.registers_per_sm}, at most {target.max_registers} per thread",
        "warps per multiprocessor": str(target.max_warps),
        "threads per block": str(target.threads_per_block),
        "grid limits": " x ".join(map(str, target.grid_max)),
        "blocks of a cluster": str(target.cluster_max) if target.cluster_max > 1 else "no clusters",
        "L2 cache": f"{target.l2_bytes >> 20} MiB",
        "memory bandwidth": f"{target.dram_rate / 1e12:.2f} TB/s",
        "dense bf16 rate": f"{target.tensor_rates['bf16'] / 1e12:.0f} TFLOP/s",
    }
    return TargetFacts(name=target.name, facts=facts)
