"""Values that are known without a GPU: a scalar computed from constants alone (for example
`torch.linspace(...)[i].item()`)."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from verifier.specs import dtype_of

if TYPE_CHECKING:
    from verifier.plan.record import Recorder, Step

MAX_BYTES = 4 << 20
MAX_STEPS = 200


def host_value(recorder: Recorder, tensor: torch.Tensor) -> Any | None:
    """The Python number in a one-element tensor, when its history is short, deterministic and starts from
    constants."""
    wanted = recorder.storage(tensor).id
    chain = _chain(recorder, wanted)
    if chain is None:
        return None
    with torch.utils._python_dispatch._disable_current_modes():
        storages: dict[int, torch.UntypedStorage] = {}
        for record in recorder.space.records:
            if record.data is not None:
                storages[record.id] = _bytes(record.data)
        for step in chain:
            _run(recorder, step, storages)
        found = _view(recorder, recorder.value(tensor), storages)
        return found.item() if found.numel() == 1 else None


def _bytes(data: bytes) -> torch.UntypedStorage:
    return torch.tensor(list(data), dtype=torch.uint8).untyped_storage()


def _chain(recorder: Recorder, wanted: int) -> list[Step] | None:
    """Steps that make the storage, in order; None when something in them is not known."""
    need = {wanted}
    chain: list[Step] = []
    for step in reversed(recorder.steps):
        if not step.writes & need:
            continue
        if step.body["kind"] != "aten" or step.body["role"] == "random" or len(chain) >= MAX_STEPS:
            return None
        need = (need - step.fresh) | step.reads
        chain.append(step)
    if sum(recorder.space.records[i].nbytes for s in chain for i in s.writes) > MAX_BYTES:
        return None
    constants = {r.id for r in recorder.space.records if r.data is not None}
    return chain[::-1] if need <= constants else None


def _view(recorder: Recorder, value: int, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    v = recorder.values[value]
    base = torch.empty(0, dtype=dtype_of(v["dtype"]))
    return base.set_(storages[v["storage"]], v["offset"], v["shape"], v["stride"])


def _run(recorder: Recorder, step: Step, storages: dict[int, torch.UntypedStorage]) -> None:
    op: Any = reduce(getattr, step.body["op"].replace("::", ".").split("."), torch.ops)
    if not hasattr(op, "_schema"):
        op = op.default
    args = [_decode(recorder, a, storages) for a in step.body["args"]]
    kwargs = {k: _decode(recorder, a, storages) for k, a in step.body["kwargs"].items()}
    out = op(*args, **kwargs)
    tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
    for value, tensor in zip(step.body["outputs"], tensors, strict=True):
        storages.setdefault(recorder.values[value]["storage"], tensor.untyped_storage())


def _decode(recorder: Recorder, arg: dict[str, Any], storages: dict[int, torch.UntypedStorage]) -> Any:
    kind = arg["t"]
    if kind == "tensor":
        return _view(recorder, arg["value"], storages)
    if kind == "list":
        return [_decode(recorder, a, storages) for a in arg["items"]]
    if kind == "none":
        return None
    if kind == "dtype":
        return dtype_of(arg["v"])
    if kind == "device":
        return torch.device("cpu")
    if kind == "enum":
        return getattr(torch, arg["v"])
    if kind == "complex":
        return complex(arg["re"], arg["im"])
    return float(arg["v"]) if kind == "float" else arg["v"]
