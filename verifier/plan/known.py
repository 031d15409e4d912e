"""Values that are known without a GPU because everything behind them is constant: a scalar read from
`torch.linspace(...)[i]`, a parameter that the constructor fills with ones, the true places of a causal mask.

The steps behind them run for real, on the host. What the numbers are worth: a sum may differ in its last bits on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from verifier.specs import dtype_of

if TYPE_CHECKING:
    from verifier.plan.record import Recorder, Step

MAX_BYTES = 4 << 20
MAX_STEPS = 200


class NotKnown(Exception):
    """Something behind the value is an input, random, state that calls change, or too much work."""


def result(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` returns: a Python scalar, or tensors that are constants of the plan. Raises NotKnown."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    wanted = {recorder.storage(t).id for t in given}
    chain = _chain(recorder, wanted, recorder.history())
    with torch.utils._python_dispatch._disable_current_modes():
        storages = {r.id: _bytes(r.data) for r in recorder.space.records if r.data is not None}
        for step in chain:
            _run(recorder, step, storages)

        def real(tensor: torch.Tensor) -> torch.Tensor:
            return _view(recorder, recorder.value(tensor), storages)

        try:
            found = func(*tree_map_only(torch.Tensor, real, args), **tree_map_only(torch.Tensor, real, kwargs))
        except RuntimeError as failed:
            raise NotKnown from failed
    if recorder.phase not in ("import", "init"):
        recorder.read |= wanted.union(*(s.reads | s.writes for s in chain))
    return tree_map_only(torch.Tensor, _constant(recorder, given[0].device), found)


def _constant(recorder: Recorder, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(real: torch.Tensor) -> torch.Tensor:
        fake = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=device)
        recorder.constant(real, fake)
        return fake

    return make


def _bytes(data: bytes) -> torch.UntypedStorage:
    found = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return found.untyped_storage()


def _chain(recorder: Recorder, wanted: set[int], history: list[Step]) -> list[Step]:
    """Steps that make the storages, in order. Raises NotKnown."""
    need = set(wanted)
    chain: list[Step] = []
    for step in reversed(history):
        if not step.writes & need:
            continue
        if step.body["kind"] != "aten" or step.body["role"] == "random" or len(chain) >= MAX_STEPS:
            raise NotKnown
        if step.phase in ("call", "plan") and any(_lasts(history, s) for s in step.writes - step.fresh):
            raise NotKnown
        need = (need - step.fresh) | step.reads
        chain.append(step)
    if sum(recorder.space.records[i].nbytes for s in chain for i in s.writes) > MAX_BYTES:
        raise NotKnown
    if not need <= {r.id for r in recorder.space.records if r.data is not None}:
        raise NotKnown
    return chain[::-1]


def _lasts(history: list[Step], storage: int) -> bool:
    """Whether a storage is older than the calls: what they write into it is state."""
    return not any(storage in s.fresh and s.phase in ("call", "plan") for s in history)


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
