"""The trace: runs a candidate (or a reference) on fake CUDA tensors and hands back a plan, or a diagnosis, as
data.

`trace_job` is the job of a confined child of a warm server. It changes torch and Triton in its process for
good and never raises for the candidate's faults. What it cannot promise: the candidate shares the process
with the recorder, so the plan is a claim about the file; every number about the plan is made elsewhere, by
code that the candidate never met.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch._dynamo
import triton
from torch._subclasses.fake_tensor import FakeTensorMode

from verifier.plan import cuda_host, driver, fakecuda, program
from verifier.plan.compiled import Compilations
from verifier.plan.diagnose import diagnostic, explain
from verifier.plan.disguise import Disguise
from verifier.plan.record import TOO_MANY, Recorder, Untraceable
from verifier.specs import build, leaves
from verifier.target import Target, get_target

RECURSION_LIMIT = 3000
MAX_PLAN_JSON = 30 << 20
"""Bytes. A plan and its reference's travel together to the profile, in one header (`wire.MAX_HEADER`)."""


class NoModel(Exception):
    """The file defines no class of the wanted name."""


@dataclass(slots=True)
class Session:
    """What one trace knows about its file."""

    source: str
    filename: str
    class_name: str
    recorder: Recorder
    fake: FakeTensorMode
    weights: dict[str, list[int]] = field(default_factory=dict)


def trace_job(
    payload: dict[str, Any], blobs: dict[str, bytes], workdir: Path
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Entry point; see the package's contract for payload and result. The plan is null unless status is ok.

    `"disguise": N` traces under that disguise, which has a file name of its own.
    A workload with `"log": true` fills `calls`: what its two calls do, for `agreement.py`. `weights` are the shapes of
    the first model's parameters and buffers by name, whether or not the plan needs them.
    `"compiled"` of another trace of the file, with that trace's blobs, spares compiling the same kernels again.
    """
    return trace(payload, workdir, blobs=blobs)


def trace(
    payload: dict[str, Any], workdir: Path, prepare: Callable[[Session], None] | None = None,
    blobs: Mapping[str, bytes] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, bytes]]:  # fmt: skip
    """`trace_job`; `prepare` changes this process further before the file runs."""
    source, target = str(payload["source"]), get_target(str(payload["target"]))
    disguise = Disguise.of(int(payload.get("disguise", 0)))
    filename = f"{disguise.name}.py" if disguise.other else Path(str(payload["filename"])).name
    workdir = disguise.wear(workdir)
    Path(filename).write_text(source, encoding="utf-8")
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # pinned: the default changes with Triton 3.10
    os.environ["TRITON_CACHE_DIR"] = str(workdir / "triton")
    fake = fakecuda.fake_mode()
    recorder = Recorder(fake, filename, disguise)
    fakecuda.install(target, recorder)
    session = Session(source, filename, str(payload["class"]), recorder, fake)
    kernels = driver.install(target, recorder)
    compilations = Compilations(disguise.name, payload.get("compiled", {}), blobs)
    compilations.install()
    cuda_host.install(target, recorder, kernels)
    if prepare is not None:
        prepare(session)
    with _stderr_file(workdir) as stderr:
        status, diagnostics, programs = _guarded(session, payload["workloads"], stderr)
    if status != "ok":
        return {"status": status, "diagnostics": diagnostics, "plan": None}, {}
    plan = _plan(session, kernels, target, programs)
    if (message := too_large(plan)) is not None:
        found = diagnostic("plan-too-large", message, source)
        return {"status": "untraceable", "diagnostics": [found], "plan": None}, {}
    used = {image[file] for image in plan["kernels"].values() for file in ("cubin", "ttir", "ptx", "source")}
    kept = {name: data for name, data in kernels.blobs.items() if name.split(".")[0] in used}
    compiled = {k: m for k, m in compilations.made.items() if used.issuperset((m["ptx"], m["cubin"]))}
    return {"status": "ok", "diagnostics": diagnostics, "plan": plan, "calls": recorder.log.calls,
            "weights": session.weights, "compiled": compiled}, kept  # fmt: skip


def too_large(plan: Any, most: int = MAX_PLAN_JSON) -> str | None:
    """Why a plan may not be handed back, None when it may."""
    size = len(json.dumps(plan))
    return f"the plan has {size} bytes, {most} are allowed: {TOO_MANY}" if size > most else None


def _guarded(session: Session, workloads: list[dict[str, Any]],
             stderr: Path) -> tuple[str, list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """Runs the file; (status, diagnostics, programs). The sandbox boundary: whatever the candidate raises
    becomes data."""
    recorder, source = session.recorder, session.source
    programs: list[dict[str, Any]] = []
    try:
        with session.fake, torch.no_grad(), recorder:
            module = _load(session)
            for workload in workloads:
                programs.append(_trace_workload(session, module, workload))
    except Untraceable:
        pass
    except NoModel as missing:
        return "unparsable", [diagnostic("no-model", str(missing), source)], []
    except BaseException as error:  # noqa: BLE001 - the sandbox boundary
        if not recorder.blockers:
            status, found = _explained(session, error, stderr)
            return status, [found, *_findings(session)], []
    if recorder.blockers:
        reasons = [diagnostic(b["code"], b["message"], source, b["line"]) for b in recorder.blockers[:8]]
        return "untraceable", [*reasons, *_findings(session)], []
    _note_swallowed(session, stderr)
    return "ok", _findings(session), programs


def _explained(session: Session, error: BaseException, stderr: Path) -> tuple[str, dict[str, Any]]:
    """`explain`, also for an exception whose own text cannot be had."""
    try:
        return explain(error, session.source, session.filename, _read(stderr))
    except BaseException:  # noqa: BLE001 - the candidate's __str__ ran
        return "runtime_error", diagnostic("runtime-error", type(error).__name__, session.source)


def _load(session: Session) -> types.ModuleType:
    """Executes the file under its bare name, so that line tables in cubins do not depend on the work
    folder."""
    code = compile(session.source, session.filename, "exec", dont_inherit=True)
    lines = session.source.splitlines(keepends=True)
    linecache.cache[session.filename] = (len(session.source), None, lines, session.filename)
    module = types.ModuleType(session.recorder.disguise.name)
    module.__file__ = str(Path.cwd() / session.filename)
    sys.modules[module.__name__] = module
    sys.setrecursionlimit(RECURSION_LIMIT)
    exec(code, module.__dict__)
    if not isinstance(getattr(module, session.class_name, None), type):
        raise NoModel(f"the file defines no class `{session.class_name}`")
    return module


def _trace_workload(session: Session, module: types.ModuleType, workload: dict[str, Any]) -> dict[str, Any]:
    recorder = session.recorder
    recorder.enter("init")
    init = [_argument(recorder, spec, "setup") for spec in workload["init"]]
    init_kwargs = {k: _argument(recorder, s, "setup") for k, s in workload.get("init_kwargs", {}).items()}
    recorder.streams.restart(recorder.disguise.seed)
    model = getattr(module, session.class_name)(*init, **init_kwargs)
    if not isinstance(model, torch.nn.Module):
        raise NoModel(f"`{session.class_name}` is not a torch.nn.Module")
    named = program.named_tensors(recorder, model)
    session.weights = session.weights or {n.name: list(recorder.values[n.value]["shape"]) for n in named}
    recorder.enter("move")
    model.cuda()
    threads = threading.active_count()
    recorder.enter("call")
    _forward(recorder, model, workload, "earlier_input")
    start, streams = recorder.mark(), len(recorder.streams.entries)
    recorder.enter("plan")
    live = {n.storage: n.name for n in program.named_tensors(recorder, model)}
    inputs, output = _forward(recorder, model, workload, "input")
    if threading.active_count() > threads:
        recorder.note(
            "warning",
            "background-thread",
            "forward leaves a thread running; its work is not part of the plan",
        )
    call = program.Call(start, streams, inputs, output, live)
    made = program.build(recorder, str(workload["name"]), named, call)
    for tensor in inputs:  # a later workload that still needs them is using an earlier call's inputs
        recorder.storage(tensor).origin = "earlier_input"
    return made


def _forward(
    recorder: Recorder, model: torch.nn.Module, workload: dict[str, Any], origin: str
) -> tuple[list[torch.Tensor], Any]:
    arguments = [_argument(recorder, spec, origin) for spec in workload["inputs"]]
    with recorder.log.call(list(leaves(arguments)), model) if workload.get("log") else nullcontext():
        output = model(*arguments)
    return list(leaves(arguments)), output


def _argument(recorder: Recorder, spec: dict[str, Any], origin: str) -> Any:
    """A fresh argument: its tensors are on the device for inputs, on the host for the constructor."""
    device = "cpu" if origin == "setup" else "cuda"

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> torch.Tensor:
        with recorder.unrecorded():
            made = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        recorder.space.record(made, origin)
        return made

    return build(spec, tensor)


def _findings(session: Session) -> list[dict[str, Any]]:
    """Findings of the recorder as diagnostics."""
    return [diagnostic(n["code"], n["message"], session.source, n["line"], severity=n["severity"])
            for n in session.recorder.findings[:64]]  # fmt: skip


def _note_swallowed(session: Session, stderr: Path) -> None:
    """Failures of the JIT that did not end the trace: the candidate caught them."""
    for failure in session.recorder.failures[:4]:
        status, d = _explained(session, failure, stderr)
        what = status.replace("_", " ")
        session.recorder.note(
            "warning", "swallowed-error", f"the candidate catches this {what}: {d['message']}", d["line"]
        )


def _plan(session: Session, kernels: driver.Kernels, target: Target, programs: list[dict[str, Any]]) -> dict[str, Any]:
    used = {a["kernel"] for p in programs for part in ("setup", "forward") for s in p[part]
            if s["kind"] == "launch" for a in s["alternatives"]}  # fmt: skip
    return {
        "format": 1, "target": target.arch, "device": target.name,
        "versions": {"triton": triton.__version__, "torch": torch.__version__,
        "python": sys.version.split()[0], **cuda_host.versions(kernels.images[sha] for sha in used)},
        "kernels": {sha: kernels.images[sha] for sha in sorted(used)}, "flags": session.recorder.flags,
        "programs": programs, "findings": _findings(session),
    }  # fmt: skip


@contextmanager
def _stderr_file(workdir: Path) -> Iterator[Path]:
    """Descriptor 2 goes to a file meanwhile: MLIR prints its errors there. The tail is echoed afterwards."""
    descriptor, name = tempfile.mkstemp(prefix="stderr-", dir=workdir)
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield Path(name)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(descriptor)
        os.write(2, _read(Path(name))[-4000:].encode())


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1 << 20).decode(errors="replace")
