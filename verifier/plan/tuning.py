"""Autotuners in a trace: every configuration that fits becomes an alternative of one launch step.

A trace has no clock, so `do_bench`, whatever it is, is never asked. What a call does is what the tuned function does
once its key is known: the configuration's own pre_hook, then the kernel. The first call with a key also does what
tuning leaves behind: the autotuner's pre_hook, called with `reset_only`. The first configuration that fits is
`alternatives[0]`; equal launches count once.

Only the first configuration is recorded, and a finding says so, where another choice would change more than one launch:
the tuned function launches nothing, or several kernels, or works on after its launch, or makes tensors before it; or
the file reads `best_config`.

Compiling costs seconds. After CPU_SECONDS of the process and its children, tuning stops at what it has, at least one
configuration per key; a finding says how many were left out.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from triton.compiler.errors import CompileTimeAssertionFailure
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources, PTXASError

from verifier.plan.record import Recorder, Step
from verifier.plan.tuner_key import tuning_key

MAX_ALTERNATIVES = 64
MAX_BEFORE = 64
CPU_SECONDS = 60.0
"""CPU time of a trace from which on tuners take no more configurations."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def cpu_seconds() -> float:
    """CPU time of this process and of its children that ended (the assembler)."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@dataclass(slots=True)
class _Tuned:
    """What is known of one tuner and key."""

    fitting: list[Any] = field(default_factory=list)
    free: set[str] = field(default_factory=set)
    """Settings that may have other values than the recorded ones: some configurations were left out."""


class Tuning:
    """The autotuners of one trace."""

    def __init__(self, recorder: Recorder, clock: Callable[[], float] = cpu_seconds) -> None:
        self._recorder, self._clock = recorder, clock
        self._tuned: dict[tuple[Any, ...], _Tuned] = {}
        self._made: dict[Any, list[Step]] = {}
        self._frozen: set[Any] = set()

    def freeze(self, tuner: Any) -> None:
        """The file reads the tuner's choice: from now on, and for what was recorded, only the first one counts."""
        if tuner not in self._frozen:
            self._frozen.add(tuner)
            for step in self._made.pop(tuner, []):
                del step.body["alternatives"][1:]
            self._one_only("the file reads `best_config`")

    def _one_only(self, why: str) -> None:
        self._recorder.note("warning", "one-config", f"{why}: only the first autotune configuration is in the plan")

    def run(self, tuner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Stands for Autotuner.run."""
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        key = (tuner, tuning_key(tuner, kwargs))
        fresh = key not in self._tuned
        tuned = self._tuned.setdefault(key, _Tuned())
        configs = self._choices(tuner, kwargs, tuned) if fresh else tuned.fitting
        mark = self._recorder.log.mark()
        result, ways = self._record(tuner, configs, (args, kwargs), tuned, fresh)
        self._recorder.log.join(mark, tuned.free)
        if fresh and len(tuner.configs) > 1:  # a device tunes even where pruning leaves one
            if self._recorder.phase == "plan":
                message = "the autotuner meets a new key in a later call, so it tunes again and again"
                self._recorder.note("warning", "tunes-every-call", message)
            tuner.pre_hook({**tuner.nargs, **kwargs, **tuned.fitting[0].all_kwargs()}, reset_only=True)
        self._append(tuner, ways)
        tuner.nargs = None
        return result

    def _choices(self, tuner: Any, kwargs: dict[str, Any], tuned: _Tuned) -> list[Any]:
        configs = list(tuner.prune_configs(kwargs) if len(tuner.configs) > 1 else tuner.configs)
        if len(configs) > MAX_ALTERNATIVES:
            self._left_out(configs[MAX_ALTERNATIVES:], tuned, "more than a plan holds")
        return configs[:MAX_ALTERNATIVES]

    def _left_out(self, configs: Sequence[Any], tuned: _Tuned, why: str) -> None:
        if configs:
            tuned.free |= {name for c in configs for name in c.kwargs}
            message = f"{len(configs)} autotune configurations are left out ({why})"
            self._recorder.note("warning", "many-configs", message)

    def _record(self, tuner: Any, configs: Sequence[Any], call: Arguments, tuned: _Tuned,
                fresh: bool) -> tuple[Any, list[list[Step]]]:  # fmt: skip
        """Runs the configurations; the first one's result and the steps of those that fit."""
        result, ways = None, list[list[Step]]()
        failure: Exception | None = None
        for i, config in enumerate(configs):
            if ways and fresh and self._clock() > CPU_SECONDS:
                self._left_out(configs[i:], tuned, f"the trace has used {CPU_SECONDS:.0f} s of CPU time")
                break
            failures = len(self._recorder.failures)
            try:
                with self._recorder.diverted() as steps:
                    made = _run_config(tuner, config, call)
            except (OutOfResources, CompileTimeAssertionFailure, PTXASError) as refused:
                failure = refused
                del self._recorder.failures[failures:]
                tuned.free |= set(config.kwargs)
                self._recorder.note("warning", "config-dropped", f"{config}: {str(refused).splitlines()[-1]}")
                continue
            if not ways:
                result, tuner.best_config = made, config
            ways.append(steps)
            _name(steps, config)
            if fresh:
                tuned.fitting.append(config)
        if not ways:
            raise failure or RuntimeError("the autotuner has no configuration")
        return result, ways

    def _append(self, tuner: Any, ways: list[list[Step]]) -> None:
        first = ways[0]
        reason = _not_one_launch(first)
        if reason is not None and any(s.body["kind"] == "launch" for s in first) and len(ways) > 1:
            self._one_only(reason)
        if reason is not None or tuner in self._frozen:
            for step in first:
                self._recorder.append(step)
            return
        step = _merge(tuner, [way for way in ways if _not_one_launch(way) is None])
        self._made.setdefault(tuner, []).append(step)
        self._recorder.append(step)


def _run_config(tuner: Any, config: Any, call: Arguments) -> Any:
    args, kwargs = call
    settings = config.all_kwargs()
    if clash := kwargs.keys() & config.kwargs.keys():
        raise ValueError(
            f"Conflicting meta-parameters: {', '.join(clash)}. Make sure that you don't re-define auto-tuned symbols."
        )
    if config.pre_hook is not None:
        config.pre_hook({**tuner.nargs, **kwargs, **settings})
    return tuner.fn.run(*args, **kwargs, **settings)  # a setting that is given twice is a TypeError, as on a device


def _not_one_launch(steps: list[Step]) -> str | None:
    """Why the steps are not library calls into existing memory and then one launch."""
    launches = [s for s in steps if s.body["kind"] == "launch"]
    if len(launches) != 1:
        return f"the tuned function launches {len(launches)} kernels"
    if steps[-1] is not launches[0]:
        return "the tuned function works on after its launch"
    if any(s.fresh for s in steps[:-1]) or len(steps) > MAX_BEFORE:
        return "the tuned function makes tensors before its launch"
    return None


def _merge(tuner: Any, ways: list[list[Step]]) -> Step:
    """One step of the launches; what comes before a launch goes into its alternatives."""
    launches = [way[-1] for way in ways]
    body = {**launches[0].body, "autotuned": True, "reset_to_zero": [str(n) for n in tuner.reset_to_zero],
            "restore_value": [str(n) for n in tuner.restore_value]}  # fmt: skip
    body["alternatives"] = _alternatives(ways)
    step = Step(body, launches[0].phase)
    effects = [_effects(way) for way in ways]
    step.reads = set().union(*(reads for reads, _, _ in effects))
    step.writes = set().union(*(writes for _, writes, _ in effects))
    step.kills = set.intersection(*(kills for _, _, kills in effects))
    return step


def _alternatives(ways: list[list[Step]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for *before, launch in ways:
        for alternative in launch.body["alternatives"]:
            made = {**alternative, "before": [s.body for s in before] + alternative["before"]}
            found.setdefault(_same(made), made)
    return list(found.values())[:MAX_ALTERNATIVES]


def _same(alternative: dict[str, Any]) -> str:
    passed = [a for a in alternative["args"] if a["t"] != "constexpr"]
    before = [(s["op"], s["args"], s["kwargs"]) for s in alternative["before"]]
    return repr((alternative["kernel"], alternative["grid"], passed, before))


def _effects(way: list[Step]) -> tuple[set[int], set[int], set[int]]:
    """Storages that some steps read before they overwrite them, write, and overwrite."""
    reads, writes, kills = set[int](), set[int](), set[int]()
    for step in way:
        reads |= step.reads - kills
        writes |= step.writes
        kills |= step.kills
    return reads, writes, kills


def _name(steps: list[Step], config: Any) -> None:
    """Notes in launches which configuration they stand for."""
    for step in steps:
        if step.body["kind"] == "launch":
            for alternative in step.body["alternatives"]:
                inner = alternative["config"]
                alternative["config"] = f"{config}; {inner}"[:500] if inner else str(config)[:500]


def install(recorder: Recorder) -> Tuning:
    """Puts the recording tuner into Triton."""
    tuning = Tuning(recorder)

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return tuning.run(self, args, kwargs)

    def read(self: Any) -> Any:
        if "_best_config" not in vars(self):
            raise AttributeError("best_config")
        tuning.freeze(self)
        return vars(self)["_best_config"]

    def write(self: Any, config: Any) -> None:
        vars(self)["_best_config"] = config

    Autotuner.run = run
    Autotuner.best_config = property(read, write)
    return tuning
