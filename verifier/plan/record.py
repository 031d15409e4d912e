"""The recorder: a dispatch mode above FakeTensorMode that turns every aten call and every launch into a step.

Views leave no step: a value is a view (dtype, shape, stride, offset) of a storage, so replay rebuilds it by
itself. Steps hold plan JSON (`body`) and the storages they read, write, create and overwrite, from which
`program.py` cuts one program. Only the thread that started the recorder is recorded; launches from others
become findings.
"""

from __future__ import annotations

import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from verifier.plan import ops, roles, settings, shapes
from verifier.plan.address import AddressSpace, StorageRecord
from verifier.plan.calllog import CallLog
from verifier.plan.custom import CustomOperators
from verifier.plan.disguise import Disguise
from verifier.plan.randomness import Streams, marker
from verifier.specs import DTYPES, dtype_name

MAX_STEPS = 60_000
"""Steps of one phase. 9,000 steps of a recurrent forward cost 13 s of CPU time to trace, 3.5 MB and 0.7 s to read."""
TOO_MANY = "a plan lists every operator and launch of an unrolled loop; put the loop into a kernel"
MAX_CONSTANT_BYTES = 256 << 10


class Untraceable(BaseException):
    """The plan would depend on a value. A BaseException, so that the candidate's `except Exception` cannot
    hide it."""


@dataclass(slots=True)
class Step:
    """One recorded step. The sets hold storage ids of the recorder's address space, and markers of random streams."""

    body: dict[str, Any]
    phase: str
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    fresh: set[int] = field(default_factory=set)
    kills: set[int] = field(default_factory=set)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records one traced file. `phase` is import, init, move, call (an earlier call) or plan (the call that
    counts)."""

    def __init__(self, fake: FakeTensorMode, filename: str, disguise: Disguise | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.filename = filename
        self.disguise = disguise or Disguise()
        self.space = AddressSpace(self.disguise.first, self.disguise.gap)
        self.steps: list[Step] = []
        self.values: list[dict[str, Any]] = []
        self.flags: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []
        self.blockers: list[dict[str, Any]] = []
        """Reasons why the plan cannot stand for the file; any of them makes the outcome `untraceable`."""
        self.failures: list[BaseException] = []
        """What the JIT raised, whether or not the candidate let it through."""
        self.log = CallLog()
        """What each call does, in the words that the interpreter uses too; filled where a payload asks for it."""
        self.phase = "import"
        self.paused = 0
        self.streams = Streams()
        self.custom = CustomOperators()
        self.read: set[int] = set()
        """Storages whose known content the host read after the constructor."""
        self._oversized: dict[int, dict[str, Any]] = {}
        """Storage to the refusal that it means if the plan needs it: a constant that no plan can hold."""
        self._value_ids: dict[tuple[Any, ...], int] = {}
        self._imported: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._sources: dict[int, tuple[torch.UntypedStorage, int | None]] = {}
        self._sink = self.steps
        self._sinks = [self.steps]
        self._start = 0
        self._thread = threading.get_ident()

    # -- storages and values -----------------------------------------------------------------------

    def storage(self, tensor: torch.Tensor) -> StorageRecord:
        """Record of the tensor's storage, created with an origin that fits the phase."""
        return self.space.record(tensor, "forward" if self.phase == "plan" else "setup")

    def value(self, tensor: torch.Tensor) -> int:
        """Id of the view that `tensor` is."""
        key = (self.storage(tensor).id, dtype_name(tensor.dtype), tuple(map(int, tensor.shape)),
               tuple(map(int, tensor.stride())), int(tensor.storage_offset()))  # fmt: skip
        if key not in self._value_ids:
            self._known_dtype(tensor.dtype)
            self._value_ids[key] = len(self.values)
            names = ("storage", "dtype", "shape", "stride", "offset")
            self.values.append(dict(zip(names, key, strict=True)))
        return self._value_ids[key]

    def constant(self, real: torch.Tensor, fake: torch.Tensor) -> None:
        """Notes that the storage of `fake` holds the data of `real`."""
        record = self.space.record(fake, "constant")
        record.origin = "constant"
        source = real.untyped_storage()
        record.nbytes = max(record.nbytes, int(fake.untyped_storage().nbytes()))
        record.data = _content(source)
        if record.data is None:
            message = (
                f"a constant of {source.nbytes()} bytes is built on the host; at most "
                f"{MAX_CONSTANT_BYTES} fit into a plan"
            )
            self._oversized[record.id] = _refusal("constant-too-large", message, self.line())
            return
        self._sources[record.id] = (source, self.line())
        if real.dtype == torch.int64 and self._holds_addresses(record.data):
            self.block(
                "pointer-table",
                "a tensor holds addresses of other tensors; pass pointers as kernel arguments",
            )

    def _holds_addresses(self, data: bytes) -> bool:
        return any(self.space.contains(n) for (n,) in struct.iter_unpack("<q", data[: len(data) // 8 * 8]))

    def import_real(self, real: torch.Tensor) -> torch.Tensor:
        """The fake stand-in of a real host tensor (numpy data, for example), whose bytes become a
        constant."""
        found = self._imported.get(id(real))
        if found is None:
            with torch.utils._python_dispatch._disable_current_modes():
                plain = real.detach()
            fake = self.fake.from_tensor(plain, static_shapes=True)
            self.constant(plain, fake)
            found = self._imported[id(real)] = (real, fake)
        return found[1]

    def unholdable(self, storages: set[int]) -> dict[str, Any] | None:
        """Why a plan cannot hold one of these constants: too large, or numpy changed its memory after it was read."""
        for number in sorted(storages):
            if number in self._oversized:
                return self._oversized[number]
            source, line = self._sources.get(number, (None, None))
            if source is not None and _content(source) != self.space.records[number].data:
                return _refusal("host-memory-changed", "memory of the host changes after it became a tensor", line)
        return None

    # -- findings ----------------------------------------------------------------------------------

    def line(self) -> int | None:
        """Line of the innermost frame of the candidate's file."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename != self.filename:
            frame = frame.f_back
        return frame.f_lineno if frame is not None else None

    def note(self, severity: str, code: str, message: str, line: int | None = None) -> None:
        """Adds a finding once per code, message and line."""
        found = {"severity": severity, "code": code, "message": message, "line": line or self.line()}
        if found not in self.findings:
            self.findings.append(found)

    def block(self, code: str, message: str) -> None:
        """Notes that the file cannot be traced, with the candidate's line."""
        self.refuse(_refusal(code, message, self.line()))

    def refuse(self, found: dict[str, Any]) -> None:
        """Adds a refusal once."""
        if found not in self.blockers:
            self.blockers.append(found)

    def value_read(self, what: str) -> Untraceable:
        """Notes that the host reads a tensor's value; the caller raises what comes back."""
        self.block(
            "value-read",
            f"{what} needs the value of a tensor on the host; a plan is fixed before any value is known",
        )
        return Untraceable(what)

    # -- steps -------------------------------------------------------------------------------------

    @contextmanager
    def diverted(self) -> Iterator[list[Step]]:
        """Steps go to the list that is yielded, not to the plan."""
        kept, self._sink = self._sink, []
        self._sinks.append(self._sink)
        try:
            yield self._sink
        finally:
            self._sinks.pop()
            self._sink = kept

    def history(self) -> list[Step]:
        """All that was done so far, with the steps that are being diverted."""
        return [step for sink in self._sinks for step in sink]

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """What happens inside leaves no step."""
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1

    def enter(self, phase: str) -> None:
        """Starts a phase; each may have MAX_STEPS steps."""
        self.phase, self._start = phase, len(self.steps)

    def append(self, step: Step) -> None:
        """Adds a step to the current list; a thread other than ours leaves a finding instead."""
        if threading.get_ident() != self._thread:
            self.note("error", "background-thread", "a kernel is launched from a background thread; only the "
                      "calling thread's work is part of the plan")  # fmt: skip
            return
        before = self._start if self._sink is self.steps else 0
        if len(self._sink) - before >= MAX_STEPS:
            self.block("too-many-steps", f"more than {MAX_STEPS} steps in one call: {TOO_MANY}")
            raise Untraceable("too many steps")
        self._sink.append(step)

    def extend(self, steps: list[Step]) -> None:
        """Appends copies of recorded steps in the current phase (a CUDA graph that is replayed)."""
        for s in steps:
            self.append(Step(s.body, self.phase, s.reads, s.writes, s.fresh, s.kills))

    def mark(self) -> int:
        return len(self._sink)

    def cut(self, mark: int) -> list[Step]:
        """Removes and returns the steps since `mark` (a CUDA graph being captured does not run)."""
        taken = self._sink[mark:]
        del self._sink[mark:]
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused or func.namespace == "prim":
            return func(*args, **kwargs)
        if func.namespace != "aten":
            return self._foreign(func, args, kwargs)
        if ops.falls_apart(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func._schema.name in ("aten::lift_fresh", "aten::lift_fresh_copy") and not isinstance(args[0], FakeTensor):
            out = func(*args, **kwargs)
            self.constant(args[0], out)
            return out
        if self.custom.kernel(func) is not None:
            self.block("replaced-operator", f"the file replaces the operator `{func.name()}` of PyTorch")
            raise Untraceable(func.name())
        func, args, kwargs = ops.instead(func, args, kwargs)
        args, kwargs = tree_map_only(torch.Tensor, self._as_fake, (args, kwargs))
        try:
            out = shapes.result(func.name(), args, ops.without_generator(kwargs))
            out = func(*args, **ops.without_generator(kwargs)) if out is None else out
            out = shapes.layout(func.name(), args, out)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return self._known_result(func, args, kwargs)
        except (UnsupportedOperatorException, UnsupportedFakeTensorException, NotImplementedError) as unknown:
            self.block("no-shape-rule", f"what `{func.name()}` returns cannot be told without running it")
            raise Untraceable(func.name()) from unknown
        self._record(func, args, kwargs, out)
        return out

    def _foreign(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that is not PyTorch's own: its Python code runs under the recorder."""
        kernel = self.custom.kernel(func)
        if kernel is None and func._schema.name in ops.MARKS:
            return func(*args, **kwargs)
        if kernel is None:
            self.block("foreign-operator", f"the code of the operator `{func.name()}` cannot be seen")
            raise Untraceable(func.name())
        with self:
            return kernel(*args, **kwargs)

    def _as_fake(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, FakeTensor):
            return self.import_real(tensor)
        if not self.space.known(tensor) and threading.get_ident() == self._thread:
            message = "a tensor is computed where the trace does not look, in another thread perhaps"
            self.note("error", "unseen-work", message)
        return tensor

    def _known_result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from verifier.plan.known import NotKnown, result

        try:
            return result(self, func, args, kwargs)
        except NotKnown:
            raise self.value_read(ops.shown(func.name())) from None

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        fresh = {self.storage(t).id for t in outputs if not self.space.known(t)}
        written = [] if torch.Tag.inplace_view in func.tags else ops.written_arguments(func, args, kwargs)
        if (not fresh and not written) or all(t.device.type == "meta" for t in (*outputs, *written)):
            return  # a view, or shapes without data
        op = func.name()
        step = Step({}, self.phase, fresh=fresh)
        step.reads = self._reads(op, args, kwargs)
        step.writes = {self.storage(t).id for t in written} | fresh
        if written and ops.overwrites(op) and self._covers(written[0]):
            step.kills = {self.storage(written[0]).id}
        step.kills |= fresh
        role = roles.role_of(op, ops.draws_random(func, args, kwargs))
        step.body = {
            "kind": "aten", "op": op, "role": role,
            "args": [self.encode(a) for a in args], "kwargs": {k: self.encode(v) for k, v in kwargs.items()},
            "outputs": [self.value(t) for t in outputs], "mutates": [self.value(t) for t in written],
            "flags": self._flags(), "generator": None, "line": self.line(),
        }  # fmt: skip
        if role == "random":
            self._draw(step, (*args, *kwargs.values()), [*written, *outputs])
        self.append(step)

    def _draw(self, step: Step, given: tuple[Any, ...], made: list[torch.Tensor]) -> None:
        """Ties a random step to its stream: it comes after every earlier draw."""
        generator = next((a for a in given if isinstance(a, torch._C.Generator)), None)
        try:
            stream = self.streams.draw(generator, made[0].device.type)
        except KeyError:
            self.block("rng-state", "a random generator whose seed the trace has not seen; make it by torch.Generator")
            raise Untraceable("random state") from None
        step.body["generator"] = stream
        step.reads.add(marker(stream))
        step.writes.add(marker(stream))

    def _reads(self, op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
        found = [t for i, a in enumerate(args) for t in tree_leaves(a)
                 if isinstance(t, torch.Tensor) and ops.reads_data(op, i)]  # fmt: skip
        found += [t for k, a in kwargs.items() for t in tree_leaves(a) if isinstance(t, torch.Tensor) and k != "out"]
        return {self.storage(t).id for t in found}

    def _covers(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() * tensor.element_size() >= self.storage(tensor).nbytes

    def encode(self, value: Any) -> dict[str, Any]:
        """Tagged JSON of one aten argument."""
        if isinstance(value, torch.Tensor):
            return {"t": "tensor", "value": self.value(value)}
        if value is None or isinstance(value, torch._C.Generator):
            return {"t": "none"}
        if isinstance(value, bool):
            return {"t": "bool", "v": value}
        if isinstance(value, int):
            return {"t": "int", "v": int(value)}
        if isinstance(value, float):
            finite = value == value and abs(value) != float("inf")
            return {"t": "float", "v": float(value) if finite else str(float(value))}
        if isinstance(value, complex):
            return {"t": "complex", "re": value.real, "im": value.imag}
        if isinstance(value, str):
            return {"t": "str", "v": value}
        if isinstance(value, torch.dtype):
            self._known_dtype(value)
            return {"t": "dtype", "v": dtype_name(value)}
        if isinstance(value, torch.device):
            return {"t": "device", "v": value.type}
        if isinstance(value, torch.layout | torch.memory_format):
            return {"t": "enum", "v": str(value).removeprefix("torch.")}
        if isinstance(value, list | tuple):
            return {"t": "list", "items": [self.encode(v) for v in value]}
        raise self.value_read(f"an argument of type {type(value).__name__}")

    def _known_dtype(self, dtype: torch.dtype) -> None:
        if dtype_name(dtype) not in DTYPES:
            self.block("dtype", f"no plan holds tensors of {dtype}")
            raise Untraceable(str(dtype))

    def _flags(self) -> int:
        state = settings.snapshot()
        if state not in self.flags:
            self.flags.append(state)
        return self.flags.index(state)


def _refusal(code: str, message: str, line: int | None) -> dict[str, Any]:
    return {"severity": "error", "code": code, "message": message, "line": line}


def _content(storage: torch.UntypedStorage) -> bytes | None:
    """Bytes of a host storage; None where it is larger than a plan's constant may be."""
    if storage.nbytes() > MAX_CONSTANT_BYTES:
        return None
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
