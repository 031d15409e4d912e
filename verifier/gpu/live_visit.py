"""What a visit does on the live path: the line to a contestant, a frame of slots without a plan, checks and times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from verifier.errors import first_line
from verifier.gpu.check import DoesNotFit, Found, Loaded
from verifier.gpu.device import Device
from verifier.gpu.link import Link, RunnerFailed
from verifier.gpu.live import Contender, HostPairs, too_short
from verifier.gpu.references import References
from verifier.gpu.visit import Request
from verifier.plan.arguments import Arg, DictArg, ListArg, TensorArg
from verifier.plan.reader import PlanError
from verifier.plan.schema import Parameter, Plan, Program, Storage, Value
from verifier.problem import Workload
from verifier.reference import Reference
from verifier.specs import dtype_name, encode, leaves, span
from verifier.timing import WorkloadTiming, confirm, decide
from verifier.verdict import Diagnostic


class ContestLink(Link):
    """The line to a contestant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.arguments: dict[str, dict[str, Any]] = {}
        """Workload to what `load` says of the arguments of constructor and forward."""
        self.tensors: dict[str, dict[str, bytes]] = {}
        """Workload to the bytes of tensors among the former."""
        self.build_seconds = 40.0
        """Deadline of loading the file, a set-up, and the first run after one: they build and compile."""
        self._new: set[str] = set()
        self._sent = False
        self._bound: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        """Program to what bound it last."""

    def describe(self, reference: Reference, given: Sequence[Any]) -> None:
        """Remembers the arguments of a workload: those of the constructor with their values, those of forward as they
        are but for the values of tensors."""
        tensors = [t.detach().cpu().contiguous() for t in leaves(reference.init)]
        names = [f"init/{i}" for i in range(len(tensors))]
        self.arguments[reference.workload.name] = {
            "init": encode(reference.init), "arguments": encode(list(given)),
            "init_tensors": [[name, encode(t)] for name, t in zip(names, tensors, strict=True)],
        }  # fmt: skip
        self.tensors[reference.workload.name] = {
            name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in zip(names, tensors, strict=True)
        }

    def load(self, name: str, plan: bytes, blobs: Mapping[str, bytes], workload: str) -> None:
        """`plan` is the source, `blobs` what was built of it: the first time they are sent along."""
        header = {"command": "load", "name": name, "workload": workload, **self.arguments[workload]}
        file, self._sent = {} if self._sent else {"source": plan, **blobs}, True
        with self._patience():
            self._ask(header, {**file, **self.tensors[workload]})

    def bind(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._new |= {name} if kwargs["setup"] else set()
        self._bound[name] = (args, {**kwargs, "setup": False})
        with self._patience():
            super().bind(name, *args, **kwargs)

    def renew(self, name: str) -> None:
        args, kwargs = self._bound[name]
        self.bind(name, *args, **kwargs)

    def run(self, name: str) -> None:
        with self._patience(first=name in self._new):
            super().run(name)
        self._new.discard(name)

    def capture(self, name: str, *, graph: bool = True) -> bool:
        with self._patience():
            return super().capture(name, graph=graph)

    @contextmanager
    def _patience(self, *, first: bool = True) -> Iterator[None]:
        deadline = self.deadline
        self.deadline = max(deadline, self.build_seconds) if first else deadline
        try:
            yield
        finally:
            self.deadline = deadline


# -- slots without a plan --------------------------------------------------------------------------


def frame(name: str, given: Sequence[Any], returned: Any, state: Mapping[str, Tensor]) -> Program:
    """A program without steps that has the reference's inputs, outputs and state: what slots are made by.

    Raises DoesNotFit where the reference returns something that is no tensor.
    """
    storages: list[Storage] = []
    values: list[Value] = []

    def add(tensor: Tensor, origin: Any) -> int:
        dense = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        kept = tensor if origin == "input" else dense
        size = span(tuple(kept.shape), kept.stride()) * kept.element_size()
        storages.append(Storage(bytes=max(size, 1), device="cuda", origin=origin))
        dtype: Any = dtype_name(kept.dtype)
        shape, stride = tuple(kept.shape), tuple(kept.stride())
        values.append(Value(storage=len(storages) - 1, dtype=dtype, shape=shape, stride=stride, offset=0))
        return len(values) - 1

    def tree(value: Any) -> Arg:
        if isinstance(value, Tensor):
            return TensorArg(t="tensor", value=add(value, "forward"))
        if isinstance(value, list | tuple):
            return ListArg(t="list" if isinstance(value, list) else "tuple", items=tuple(tree(v) for v in value))
        if isinstance(value, dict):
            return DictArg(t="dict", items={str(k): tree(v) for k, v in value.items()})
        raise DoesNotFit(f"the reference returns a {type(value).__name__}, which a live run cannot hand over")

    inputs = tuple(add(t, "input") for t in leaves(list(given)))
    parameters = {k: Parameter(value=add(t, "parameter"), buffer=False, ready=0) for k, t in state.items()}
    return Program(
        workload=name, inputs=inputs, parameters=parameters, setup=(), forward=(), output=tree(returned), mutated={},
        mutated_inputs=(), restore=(), storages=tuple(storages), values=tuple(values), constants=(),
    )  # fmt: skip


def framed(programs: Sequence[Program], source: bytes, built: bytes) -> Loaded:
    """A candidate's source, and its native code, where a checked plan with its kernels would stand."""
    plan = Plan(
        format=1, target="live", versions={}, kernels={}, flags=(), programs=tuple(programs), findings=()
    )  # fmt: skip
    return Loaded(plan, source, {"built": built} if built else {})


def live_candidate(references: References, wanted: Sequence[Reference], link: ContestLink, salt: str,
                   source: bytes, built: bytes = b"") -> Loaded:  # fmt: skip
    """The candidate's file with the frames of all its workloads; tells `link` of their arguments."""
    programs = []
    for reference in wanted:
        made = references.draw(reference, "task", salt)
        if isinstance(made, str):
            raise DoesNotFit(f"the reference takes no input of its own: {made}")
        link.describe(reference, made.inputs)
        programs.append(frame(reference.workload.name, made.inputs, made.native, reference.state))
    return framed(programs, source, built)


# -- the visit -------------------------------------------------------------------------------------


class LiveSteps:
    """Where a live visit differs from one with a plan. A part of `judge_process`, which has the rest."""

    _device: Device
    _references: References
    _link: Link
    _request: Request
    _blobs: dict[str, bytes]
    _found: Found
    _timings: list[WorkloadTiming]
    runner: Link
    """Where the base runs; `_link` is the contestant's."""
    base_lost: bool = False

    if TYPE_CHECKING:

        def _loaded(self, name: str) -> Loaded: ...

        def _check_base(self, base: Loaded, workload: str) -> None: ...

        def _reference(self, name: str) -> Reference: ...

    def _candidate(self) -> Loaded:
        """Times the base alone, before the file is loaded anywhere; then the file with its frames."""
        self._alone = {name: self._base_alone(name) for name in self._request.timed}
        assert isinstance(self._link, ContestLink)
        names = dict.fromkeys((*self._request.workloads, *self._request.timed))
        wanted = [self._reference(name) for name in names]
        source, built = self._blobs["source"], self._blobs.get("built", b"")
        return live_candidate(self._references, wanted, self._link, self._request.salt, source, built)

    def _base_alone(self, name: str) -> float | str:
        """Seconds, or why the base cannot be timed."""
        try:
            with self._as_candidate(self.runner):
                self._check_base(self._loaded("base"), name)
            pairs = HostPairs(self._device, self._reference(name), self._base(name), self._request.salt)
            try:
                pairs.open()
                return pairs.alone()
            finally:
                pairs.close()
        except (DoesNotFit, PlanError, RunnerFailed, torch.OutOfMemoryError) as error:
            self.base_lost = self.base_lost or (isinstance(error, RunnerFailed) and error.lost)
            return first_line(error)

    @contextmanager
    def _as_candidate(self, link: Link) -> Iterator[None]:
        """Commands go to another process for a while."""
        kept, self._link = self._link, link
        try:
            yield
        finally:
            self._link = kept

    def _base(self, name: str) -> Contender:
        return Contender("b", self.runner, self._loaded("base"))

    def _try_time(self, candidate: Loaded, workload: Workload) -> None:
        """Times a workload by the host's clock, or says in a warning why that was not possible."""
        alone = self._alone[workload.name]
        said = alone if isinstance(alone, str) else self._timed_beside(candidate, workload, alone)
        if said:
            message = f"{workload.name} was not timed: {said}"
            self._found.findings.append(Diagnostic(severity="warning", code="not-timed", message=message))

    def _timed_beside(self, candidate: Loaded, workload: Workload, alone: float) -> str:
        """Why there are no times, in words."""
        reference, request = self._reference(workload.name), self._request
        pairs = HostPairs(self._device, reference, self._base(workload.name), request.salt)
        try:
            pairs.open(Contender("a", self._link, candidate))
            floor = request.floor_seconds.get(workload.name, 0.0)
            decided = decide(pairs.measure, pairs.rules(request.rules), floor_seconds=floor)
            confirmed = None
            if not too_short(decided) and request.confirmation is not None:
                confirmed = confirm(pairs.measure, decided, pairs.coarser(request.confirmation), floor_seconds=floor)
        except RunnerFailed as failed:
            self.base_lost = self.base_lost or (failed.lost and pairs.side == "b")
            if pairs.side == "a" and failed.kind != "out-of-memory":
                raise
            return f"{'the candidate beside its base' if pairs.side == 'a' else 'the base'} cannot be timed: {failed}"
        except torch.OutOfMemoryError as full:
            return first_line(full)
        finally:
            self._close(pairs)
        if said := too_short(confirmed or decided) or pairs.disturbed(alone, request.disturbance):
            return said
        self._timings.append(
            WorkloadTiming(
                workload=workload.name, base=request.base, path="live", decided=decided, confirmed=confirmed,
                graphs=pairs.graphs,
            )
        )  # fmt: skip
        return ""

    def _close(self, pairs: HostPairs) -> None:
        try:
            pairs.close()
        except RunnerFailed:
            self.base_lost = self.base_lost or pairs.side == "b"
