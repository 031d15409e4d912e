"""The confined job: a candidate's `ModelNew` on every draw of one workload, under Triton's interpreter.

Runs in a disposable fork of a zygote that was started with TRITON_INTERPRET=1. The candidate shares this
process, so what the job says about traffic, races or mutated inputs is the candidate's word; the expected
values are not here, and the outputs leave as bytes that a trusted job checks.

What it does not protect against: a candidate that recognises the interpreter and computes by other means than its
kernels. The list of what it did is compared with a trace (`plan/agreement.py`), and the traced plan of the same
workload is replayed without the file (`replayed.py`).
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifier.interpreter import device, repair
from verifier.interpreter.blobs import chosen_bytes, pack, to_bytes, unpack
from verifier.interpreter.launch import KernelError, Launcher
from verifier.interpreter.limits import NotSampled, OutOfTime, Unsupported
from verifier.interpreter.sampling import Coverage
from verifier.sandbox.job import is_allocation_failure
from verifier.specs import SpecError, encode, leaves
from verifier.target import get_target

FILENAME = "candidate.py"
MAX_OUTPUT_BYTES = 256 << 20
_NOT_HERE = (
    "not compiled with CUDA", "not linked with", "not implemented for", "CUDA error", "no NVIDIA driver",
    "Cannot access accelerator", "CUDA_HOME", "nvcc", "NVRTC", "not supported on CPU",
    "only supported on CUDA", "dummy base class",
)  # fmt: skip
"""Messages of PyTorch and of build tools for what only a GPU machine has."""

Answer = tuple[dict[str, Any], dict[str, bytes]]


def interpret_job(payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path) -> Answer:
    """Runs a candidate.

    payload: {"source", "class", "init": spec, "init_seed": int, "state": spec, "draws": [{"name", "inputs": spec, and
    for the probe "state": spec}], "seconds": float, "sample": {"programs": int, "seed": str} or null,
    "spoil": bool, "target": name, "compiled": figures of the plan's kernels by name}; blobs `init/`,
    `state/`, `d0/in/`, ..., the last draw may be the probe under `probe/`. With `sample` only that many programs of a
    launch run, and `d0/out/0` holds the stored elements that the bits of `d0/mask/0` name. Value: {"status": "ok" |
    "failed" | "not_applicable", "code", "reason", "line", "outputs": {prefix: spec}, "mutated": {prefix: [int]},
    "findings", "traffic", "dots", "launches", "configurations", "sampled", "programs", "calls", "without_effect",
    "only_copies"}. With `spoil` the first draw runs once more, and what kernels store is changed: equal outputs mean
    that nothing comes of the kernels. Where they only copy, all draws run once more with other weights.
    """
    torch.set_num_threads(1)
    path = workdir / FILENAME
    path.write_text(payload["source"])
    sample = payload["sample"]
    coverage = Coverage(int(sample["programs"]), sample["seed"]) if sample else None
    deadline = time.monotonic() + float(payload["seconds"])
    launcher = Launcher(str(path), deadline, coverage, payload["compiled"])
    launcher.install()
    device.patch(get_target(payload["target"]))
    device.hide_interpreter()
    run = _Run(launcher, payload, blobs)
    with torch.no_grad():
        run.all(path)
    return run.value(), run.blobs


class _Run:
    def __init__(self, launcher: Launcher, payload: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
        self.launcher = launcher
        self.payload = payload
        self.given = blobs
        self.blobs: dict[str, bytes] = {}
        self.outputs: dict[str, Any] = {}
        self.mutated: dict[str, list[int]] = {}
        self.traffic: list[dict[str, Any]] = []
        self.coverage = launcher.memory.coverage
        self.sampled = self.programs = 0
        self.without_effect = self.only_copies = False
        self.end: dict[str, Any] = {"status": "ok", "code": "", "reason": "", "line": None}

    def all(self, path: Path) -> None:
        """Runs every draw until one fails. What the candidate raises becomes data: this is the sandbox
        boundary.
        """
        try:
            with device.CpuAsCuda():
                model = self._build(path)
            initial = _snapshot(model)
            for i, draw in enumerate(self.payload["draws"]):
                self.launcher.rotation = i
                self._draw(model, initial, draw)
                self.traffic = self.traffic or self._traffic()
            if self.payload["spoil"] and self.payload["draws"] and not self.coverage:
                self._look_for_decoys(model, initial, self.payload["draws"])
        except OutOfTime as stop:
            self._stop("not_applicable", "too-slow", f"the interpreter finished {stop}")
        except NotSampled as stop:
            self._stop("not_applicable", "not-sampled", str(stop))
        except _Refused as refusal:
            self._stop("failed", "foreign-output", str(refusal))
        except Exception as error:  # noqa: BLE001 - sandbox boundary
            self._classify(error)

    def _build(self, path: Path) -> Any:
        module = _load(path)
        init = unpack(self.payload["init"], self.given, "init")
        torch.manual_seed(self.payload["init_seed"])
        model = getattr(module, self.payload["class"])(*init)
        _load_state(model, unpack(self.payload["state"], self.given, "state"))
        return model

    def _draw(self, model: Any, initial: dict[str, Tensor], draw: Mapping[str, Any]) -> None:
        prefix = draw["prefix"]
        _restore(model, initial)
        if self.coverage:
            self.coverage.reset()
        if "state" in draw:
            _load_state(model, unpack(draw["state"], self.given, f"{prefix}/state"))
        values = unpack(draw["inputs"], self.given, f"{prefix}/in")
        torch.manual_seed(self.payload["init_seed"])
        logged = self.launcher.log.call(list(leaves(values)), model)
        with device.CpuAsCuda(self.coverage.library if self.coverage else None), logged:
            output = model(*values)
        if self.launcher.errors:
            raise self.launcher.errors[0]
        if self.coverage and self.coverage.refusal:
            raise NotSampled(self.coverage.refusal)
        self.mutated[prefix] = [
            i for i, t in enumerate(leaves(values)) if to_bytes(t) != self.given[f"{prefix}/in/{i}"]
        ]
        self._keep(prefix, output)

    def _look_for_decoys(self, model: Any, initial: dict[str, Tensor], draws: Sequence[Mapping[str, Any]]) -> None:
        """Whether the outputs of a draw are the same, bit by bit, when what kernels store is changed, and whether
        kernels leave everything as it was. A ReLU of positive inputs and a scale that starts at one do that too, so
        the other draws and other weights must agree.
        """
        first, copies = self._spoiled(model, initial, draws[0])
        prefix = draws[0]["prefix"]
        self.without_effect = first is not None and all(
            data == self.blobs.get(f"{prefix}/{name.partition('/')[2]}") for name, data in first.items()
        )
        others = {name: t * 1.25 + 0.5 if t.is_floating_point() else t for name, t in initial.items()}
        self.only_copies = copies and all(self._spoiled(model, others, draw)[1] for draw in draws)

    def _spoiled(
        self, model: Any, state: dict[str, Tensor], draw: Mapping[str, Any]
    ) -> tuple[dict[str, bytes] | None, bool]:
        """Outputs of a run in which what kernels store is changed, None where it raises; and whether each launch stored
        what was there before.
        """
        _restore(model, state)
        values = unpack(draw["inputs"], self.given, f"{draw['prefix']}/in")
        torch.manual_seed(self.payload["init_seed"])
        self.launcher.rotation, self.launcher.spoil = 0, True
        launches, copies = self.launcher.launches, self.launcher.copies
        made: dict[str, bytes] | None = None
        try:
            with device.CpuAsCuda():
                _, made = pack(model(*values), "spoiled/out")
        except (Exception, OutOfTime):  # noqa: BLE001 - sandbox boundary: what a spoiled run raises is an effect
            pass
        finally:
            self.launcher.spoil = False
        return made, 0 < self.launcher.launches - launches == self.launcher.copies - copies

    def _keep(self, prefix: str, output: Any) -> None:
        for tensor in leaves(output):
            if type(tensor) not in (Tensor, nn.Parameter):
                raise _Refused(f"an output is a {type(tensor).__name__}, not a torch.Tensor")
        try:
            self.outputs[prefix], made = self._pack(output, prefix)
        except (SpecError, NotImplementedError) as error:
            raise _Refused(f"an output cannot be described: {error}") from error
        self.blobs.update(made)
        if sum(map(len, self.blobs.values())) > MAX_OUTPUT_BYTES:
            raise _Refused(f"the outputs take more than {MAX_OUTPUT_BYTES >> 20} MiB")

    def _pack(self, output: Any, prefix: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        if not self.coverage:
            return pack(output, f"{prefix}/out")
        made: dict[str, bytes] = {}
        for i, tensor in enumerate(leaves(output)):
            counts = self.coverage.elements(tensor)
            made[f"{prefix}/out/{i}"] = chosen_bytes(tensor, counts)
            made[f"{prefix}/mask/{i}"] = np.packbits(counts).tobytes()
        if not self.programs:
            self.sampled, self.programs = self.coverage.ran, self.coverage.total
        return encode(output), made

    def _classify(self, error: Exception) -> None:
        """Whose fault an exception is: a kernel that compiled but does not run here is the interpreter's."""
        if self.launcher.errors:
            error = self.launcher.errors[0]
        if isinstance(error, KernelError):
            self._stop("not_applicable", "unsupported", f"the interpreter cannot run {error}")
            return
        if isinstance(error, Unsupported):
            self._stop("not_applicable", "unsupported", f"the interpreter does without {error}")
            return
        text = f"{type(error).__name__}: {error}"[:1000]
        lacking = isinstance(error, NotImplementedError) or is_allocation_failure(error)
        if lacking or any(s in text for s in _NOT_HERE):
            self._stop("not_applicable", "unsupported", f"needs a GPU: {text}")
            return
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == self.launcher.filename]
        self._stop("failed", "runtime-error", text, lines[-1] if lines else None)

    def _stop(self, status: str, code: str, reason: str, line: int | None = None) -> None:
        self.end = {"status": status, "code": code, "reason": reason[:2000], "line": line}

    def value(self) -> dict[str, Any]:
        memory = self.launcher.memory
        findings = [
            {
                "severity": f.severity,
                "code": f.code,
                "message": f.message[:1000],
                "line": f.line,
                "count": f.lanes,
            }
            for f in memory.findings.values()
        ]
        return {
            **self.end,
            "outputs": self.outputs,
            "mutated": self.mutated,
            "findings": findings,
            "traffic": self.traffic,
            "dots": sorted(repair.DOT_CLASSES),
            "launches": self.launcher.launches,
            "sampled": self.sampled,
            "programs": self.programs,
            "calls": self.launcher.log.calls,
            "without_effect": self.without_effect,
            "only_copies": self.only_copies,
            "configurations": sorted(self.launcher.configurations)[:64],
        }

    def _traffic(self) -> list[dict[str, Any]]:
        """Bytes per line so far; taken after the first draw, so that it is one run of `forward`."""
        return [
            {"line": line, "kernel": kernel, "loaded": t.loaded, "stored": t.stored, "atomic": t.atomic,
             "masked_off": t.masked_off}
            for (line, kernel), t in sorted(self.launcher.memory.traffic.items())
        ]  # fmt: skip


class _Refused(Exception):
    """An output that is not plain data."""


def _load(path: Path) -> ModuleType:
    module = ModuleType("candidate")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(path.read_text(), str(path), "exec", dont_inherit=True), module.__dict__)
    return module


def _load_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copies the weights whose names and shapes match; the rest keeps what the constructor made."""
    for name, tensor in _tensors(model).items():
        if name in state and state[name].shape == tensor.shape:
            tensor.data.copy_(state[name])


def _tensors(model: Any) -> dict[str, Tensor]:
    if not isinstance(model, nn.Module):
        return {}
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _snapshot(model: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in _tensors(model).items()}


def _restore(model: Any, initial: Mapping[str, Tensor]) -> None:
    for name, tensor in _tensors(model).items():
        if name in initial and tensor.shape == initial[name].shape:
            tensor.data.copy_(initial[name])
