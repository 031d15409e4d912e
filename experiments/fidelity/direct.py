"""Child: runs an answer's own file on the device, beside the reference, and leaves its outputs for the replay."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from experiments.fidelity import measure
from experiments.fidelity.launches import Watch
from experiments.fidelity.workers import Report
from verifier.loader import load_problem, materialize
from verifier.measure import relative_error
from verifier.plan import settings


def direct(report: Report, payload: Mapping[str, Any]) -> None:
    """payload: {"problem": file, "name", "answer": file, "device"}. Fills the report; raises what the answer raises."""
    device = torch.device(payload["device"])
    watch = Watch(device.type)
    watch.install()
    report.stage("problem")
    problem = load(payload["problem"], payload["name"])
    reference = measure.construct(problem.Model, problem)
    state = {name: t.detach().clone() for name, t in measure.tensors_of(reference).items()}
    report.stage("constructor")
    model = _candidate(Path(payload["answer"]), problem, state, device)
    inputs = measure.make_inputs(problem, device)
    report.note(inputs=[measure.checksums(t) for t in measure.tensors(inputs)])
    report.stage("first call")
    run = _Run(model, problem, inputs, device)
    begin = time.perf_counter()
    first = run.sums(run())
    report.note(first_seconds=time.perf_counter() - begin, changes_inputs=run.note_changes())
    report.stage("calls")
    _repeat(report, run, watch, first)
    report.stage("reference")
    _against(report, reference.to(device), run)


def load(file: str, name: str) -> ModuleType:
    """The problem's module at its only workload."""
    problem = load_problem(Path(file), name)
    return materialize(problem, problem.workloads[0])


def _candidate(path: Path, problem: ModuleType, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """The model on the device, with the reference's weights where names and shapes match."""
    spec = spec_from_file_location("candidate", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["candidate"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    model = measure.construct(module.ModelNew, problem)
    with torch.no_grad():
        for name, tensor in measure.tensors_of(model).items():
            if name in state and state[name].shape == tensor.shape:
                tensor.data.copy_(state[name])
    return model.to(device)


class _Run:
    """Calls of one model, each on the state and the inputs of the first."""

    def __init__(self, model: nn.Module, problem: ModuleType, inputs: list[Any], device: torch.device) -> None:
        self.model, self.inputs, self.device = model, inputs, device
        self._problem = problem
        self._state = {name: t.detach().clone() for name, t in measure.tensors_of(model).items()}
        self._sums = self.sums(inputs)
        self._changes_inputs = False

    def __call__(self) -> Any:
        measure.seed()
        with torch.no_grad():
            output = self.model(*self.inputs)
        measure.settle(self.device)
        return output

    def again(self) -> Any:
        """A call on restored buffers, parameters and inputs."""
        with torch.no_grad():
            for name, tensor in measure.tensors_of(self.model).items():
                if name in self._state and tensor.shape == self._state[name].shape:
                    tensor.data.copy_(self._state[name])
        if self._changes_inputs:
            self.fresh_inputs()
        return self()

    def fresh_inputs(self) -> None:
        """The inputs as they were drawn, in the same memory."""
        drawn = measure.tensors(measure.make_inputs(self._problem, self.device))
        for mine, fresh in zip(measure.tensors(self.inputs), drawn, strict=True):
            mine.copy_(fresh)

    def inputs_differ(self) -> bool:
        return self.sums(self.inputs) != self._sums

    def note_changes(self) -> bool:
        """Whether the call that just ended changed the inputs; later ones then begin with fresh ones."""
        self._changes_inputs = self.inputs_differ()
        return self._changes_inputs

    def sums(self, output: Any) -> list[list[int]]:
        return [measure.checksums(t) for t in measure.tensors(output)]


def _repeat(report: Report, run: _Run, watch: Watch, first: list[list[int]]) -> None:
    """More calls: are they bitwise equal, what do the launches do, how long does one take, what comes out."""
    second = run.sums(run.again())
    with watch.watching():
        watched = run.sums(run.again())
    report.note(first_equal=first == second, repeatable=second == watched, flags=settings.snapshot())
    report.note(launches=watch.launches, choices=watch.choices)
    report.note(times=measure.summary(measure.timed(lambda: _plain(run), run.device, seconds=1.0)))
    report.note(outputs=measure.save_outputs(measure.tensors(run.again()), report.folder))


def _plain(run: _Run) -> None:
    with torch.no_grad():
        run.model(*run.inputs)


def _against(report: Report, reference: nn.Module, run: _Run) -> None:
    """Error against the reference; what the reference itself cannot do is noted and is no fault of the answer."""
    if run.inputs_differ():
        run.fresh_inputs()
    measure.seed()
    try:
        with torch.no_grad():
            wanted = measure.tensors(reference(*run.inputs))
    except RuntimeError as error:
        report.note(reference_fault=str(error)[:300])
        return
    if run.inputs_differ():
        wanted = [t.clone() for t in wanted]
        run.fresh_inputs()
    outputs = measure.tensors(run.again())
    shapes = [tuple(t.shape) for t in outputs] == [tuple(t.shape) for t in wanted]
    report.note(reference_shapes=shapes)
    if shapes:
        errors = [relative_error(a, b)[0] for a, b in zip(outputs, wanted, strict=True)]
        report.note(reference_error=finite(max(errors, default=0.0)))


def finite(value: float) -> float | None:
    """JSON has no infinity: None stands for it."""
    return value if value < float("inf") else None
