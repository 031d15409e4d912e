"""Cuts one program out of a recording: the steps of the counted call, the set-up they depend on, and compact
ids.

Set-up is found by liveness: from the storages whose content `forward` reads before it overwrites them, back
through the module's import, the constructor, the move to the device and earlier calls. A storage that
`forward` only writes into is `scratch`: it is allocated, never computed. A kernel may store into a part of a storage
only, so what filled the storage before stays in set-up all the same. An earlier call's input that is still needed
keeps the origin `earlier_input`; the audit refuses it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from verifier.plan.record import Recorder, Step, Untraceable


@dataclass(frozen=True, slots=True)
class Named:
    """A parameter or buffer as it was when the constructor returned. `written_at` counts recorded steps."""

    name: str
    value: int
    storage: int
    buffer: bool
    persistent: bool
    """Whether the state dict has it."""
    written_at: int


def named_tensors(recorder: Recorder, module: torch.nn.Module) -> list[Named]:
    """The module's parameters and buffers by name, at the current point of the recording."""
    last: dict[int, int] = {}
    for i, step in enumerate(recorder.steps):
        for storage in step.writes:
            last[storage] = i + 1
    found = []
    buffers, hidden = dict(module.named_buffers()), _hidden(module)
    for name, tensor in [*module.named_parameters(), *buffers.items()]:
        if isinstance(tensor, torch.Tensor):
            fake = tensor if isinstance(tensor, FakeTensor) else recorder.import_real(tensor)
            storage = recorder.storage(fake).id
            found.append(
                Named(name, recorder.value(fake), storage, name in buffers, name not in hidden, last.get(storage, 0))
            )
    return found


def _hidden(module: torch.nn.Module) -> set[str]:
    """Names of buffers that the state dict leaves out."""
    return {f"{prefix}.{name}" if prefix else name
            for prefix, part in module.named_modules() for name in part._non_persistent_buffers_set}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """The counted call: where its steps and random streams start, its inputs in leaf order and what it returned."""

    start: int
    streams: int
    """Random streams that are older than the call."""
    inputs: Sequence[torch.Tensor]
    output: Any
    live_names: dict[int, str]
    """Storage to name of the parameters and buffers that the module holds when the call starts."""


def build(recorder: Recorder, workload: str, named: Sequence[Named], call: Call) -> dict[str, Any]:
    """Program JSON with ids counted from 0 in order of first use."""
    forward = recorder.steps[call.start :]
    output = _encode_output(recorder, call.output)
    output_storages = {recorder.values[v]["storage"] for v in _values_in(output)}
    live, written, touched = _forward_liveness(forward, output_storages)
    input_storages = {recorder.storage(t).id for t in call.inputs}
    fixed = {n.storage for n in named} & recorder.read
    history, state = recorder.steps[: call.start], written & set(call.live_names)
    partly = _partly_stored(history, forward, live, output_storages)
    live |= partly
    need = (live | fixed) - input_storages
    setup = _setup(history, need, state, partly)
    used_storages = touched | output_storages | input_storages | fixed | {s for step in setup for s in _touched(step)}
    if (refusal := recorder.unholdable(used_storages)) is not None:
        recorder.refuse(refusal)
        raise Untraceable("constant")
    names = [n for n in named if n.persistent and n.storage in used_storages]
    numbering = _Numbering(recorder)
    for tensor in call.inputs:
        numbering.value(recorder.value(tensor))
    setup_indexes = {id(step): i for i, step in enumerate(setup)}
    order = [setup_indexes.get(id(step)) for step in history]
    parameters = {n.name: {"value": numbering.value(n.value), "buffer": n.buffer, "fixed": n.storage in fixed,
                           "ready": _ready(order, n.written_at)} for n in names}  # fmt: skip
    program = {
        "workload": workload,
        "inputs": [numbering.value(recorder.value(t)) for t in call.inputs],
        "parameters": parameters,
        "setup": [numbering.step(s.body) for s in setup],
        "forward": [numbering.step(s.body) for s in forward],
        "output": numbering.remap(output),
        "mutated": {call.live_names[s]: numbering.storage(s) for s in sorted(written & set(call.live_names))},
        "mutated_inputs": [i for i, t in enumerate(call.inputs) if recorder.storage(t).id in written],
        "restore": sorted(numbering.storage(s) for s in live & written),
    }
    program["generators"] = numbering.generators(call.streams)
    made = {s for step in setup for s in step.fresh}
    program |= numbering.tables(_origins(recorder, forward, made, input_storages, {n.storage for n in names}))
    return program


def _touched(step: Step) -> set[int]:
    return {s for s in step.reads | step.writes | step.fresh if s >= 0}


def _forward_liveness(forward: Sequence[Step], outputs: set[int]) -> tuple[set[int], set[int], set[int]]:
    """Storages whose content the call needs at its start, those it writes, and all it touches."""
    live = set(outputs)
    for step in reversed(forward):
        live -= step.kills
        live |= step.reads
    live = {s for s in live if s >= 0}  # where forward draws random numbers, earlier draws do not matter
    written = {s for step in forward for s in step.writes - step.fresh if s >= 0}
    touched = {s for step in forward for s in _touched(step)}
    return live, written, touched


def _partly_stored(history: Sequence[Step], forward: Sequence[Step], live: set[int], outputs: set[int]) -> set[int]:
    """Storages that forward reads after kernels stored into them, and that had content before: what the kernels do
    not reach keeps it."""
    surely = set(outputs)
    for step in reversed(forward):
        surely -= step.kills if step.body["kind"] == "aten" else set()
        surely |= step.reads
    filled = {s for step in history if step.body["kind"] == "aten" for s in _filled(step)}
    return (surely - live) & filled


def _filled(step: Step) -> set[int]:
    """Storages that a library step gives content which does not come from a call's input."""
    if step.phase in ("call", "plan"):
        return step.fresh if step.body["role"] == "fill" else set()
    return step.writes if step.body["role"] != "alloc" else set()


def _setup(history: Sequence[Step], need: set[int], restored: set[int], partly: set[int]) -> list[Step]:
    """Steps of the history that make the needed content, in order. What calls write into restored state, or into
    storages that forward stores into again, is left out."""
    kept: list[Step] = []
    need = set(need)
    for step in reversed(history):
        called = step.phase in ("call", "plan")
        effects = step.writes - restored - (partly - step.fresh) if called else step.writes
        if not effects.isdisjoint(need):
            kept.append(step)
            need -= step.kills if step.body["kind"] == "aten" else set()
            need |= step.reads
    return kept[::-1]


def _ready(order: Sequence[int | None], written_at: int) -> int:
    """How many kept set-up steps come before the point where a parameter has its initial value."""
    return sum(1 for kept in order[:written_at] if kept is not None)


def _origins(
    recorder: Recorder, forward: Sequence[Step], made: set[int], inputs: set[int], names: set[int]
) -> dict[int, str]:
    origins = {s: "forward" for step in forward for s in step.fresh}
    for record in recorder.space.records:
        if record.id in inputs:
            origins[record.id] = "input"
        elif record.data is not None:
            origins[record.id] = "constant"
        elif record.origin in ("input", "earlier_input"):
            origins[record.id] = "earlier_input"
        elif record.id in names:
            origins[record.id] = "parameter"
        elif record.id not in origins:
            origins[record.id] = "setup" if record.id in made else "scratch"
    return origins


def _encode_output(recorder: Recorder, output: Any, depth: int = 0) -> dict[str, Any]:
    if isinstance(output, torch.Tensor):
        plain = type(output) in (FakeTensor, torch.Tensor, torch.nn.Parameter)
        if not plain:
            recorder.note("error", "tensor-subclass", f"forward returns a {type(output).__name__}, not a plain tensor")
        if not isinstance(output, FakeTensor):
            output = recorder.import_real(output)
        if output.layout is not torch.strided:
            recorder.block("sparse-output", f"forward returns a tensor with layout {output.layout}")
            raise TypeError(f"forward returns a tensor with layout {output.layout}")
        if output.device.type not in ("cuda", "cpu"):
            raise TypeError(f"forward returns a tensor on `{output.device}`, which holds no data")
        return {"t": "tensor", "value": recorder.value(output)}
    if isinstance(output, list | tuple) and depth < 4:
        kind = "list" if isinstance(output, list) else "tuple"
        return {"t": kind, "items": [_encode_output(recorder, o, depth + 1) for o in output]}
    if isinstance(output, dict) and depth < 4:
        items = {str(k): _encode_output(recorder, o, depth + 1) for k, o in output.items()}
        return {"t": "dict", "items": items}
    if output is None or isinstance(output, bool | int | float | str):
        return recorder.encode(output)
    raise TypeError(f"forward returns a {type(output).__name__}, not a tensor")


def _values_in(tree: dict[str, Any]) -> Iterable[int]:
    if tree["t"] == "tensor":
        yield tree["value"]
    elif "items" in tree:
        items = tree["items"]
        for item in items.values() if isinstance(items, dict) else items:
            yield from _values_in(item)


class _Numbering:
    """Maps recorder ids to compact ids, in order of first use."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._values: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._streams: dict[int, int] = {}

    def storage(self, old: int) -> int:
        return self._storages.setdefault(old, len(self._storages))

    def value(self, old: int) -> int:
        if old not in self._values:
            self._values[old] = len(self._values)
            self.storage(self._recorder.values[old]["storage"])
        return self._values[old]

    def remap(self, tree: Any) -> Any:
        """A copy of tagged JSON with new ids."""
        if isinstance(tree, list):
            return [self.remap(t) for t in tree]
        if not isinstance(tree, dict):
            return tree
        if tree.get("t") == "tensor":
            return {"t": "tensor", "value": self.value(tree["value"])}
        made = {k: self.remap(v) for k, v in tree.items()}
        if tree.get("t") in ("pointer", "descriptor"):
            made["storage"] = self.storage(tree["storage"])
            made["value"] = None if tree["value"] is None else self.value(tree["value"])
        return made

    def step(self, body: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = self.remap(body)
        if body["kind"] == "aten":
            made["outputs"] = [self.value(v) for v in body["outputs"]]
            made["mutates"] = [self.value(v) for v in body["mutates"]]
            if body["generator"] is not None:
                made["generator"] = self._streams.setdefault(body["generator"], len(self._streams))
        else:
            for alternative, old in zip(made["alternatives"], body["alternatives"], strict=True):
                alternative["before"] = [self.step(s) for s in old["before"]]
        return made

    def generators(self, older: int) -> list[dict[str, Any]]:
        """The random streams that the numbered steps draw from; the first `older` are not the counted call's own."""
        entries = self._recorder.streams.entries
        return [{**entries[old], "each_call": old >= older} for old in self._streams]

    def tables(self, origins: dict[int, str]) -> dict[str, Any]:
        records = self._recorder.space.records
        storages, constants = [], []
        for old, new in self._storages.items():
            record = records[old]
            nbytes = int(record.keep.nbytes())
            storages.append({"bytes": max(nbytes, record.nbytes), "device": record.device, "origin": origins[old]})
            if origins[old] == "constant":
                data = base64.b64encode(record.data or b"").decode()
                constants.append({"storage": new, "data": data})
        values = []
        for old in self._values:
            v = self._recorder.values[old]
            values.append(
                {
                    **v,
                    "storage": self._storages[v["storage"]],
                    "shape": list(v["shape"]),
                    "stride": list(v["stride"]),
                }
            )
        return {"storages": storages, "values": values, "constants": constants}
