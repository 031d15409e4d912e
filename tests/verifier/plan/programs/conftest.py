"""Does the plan equal the program? Executes a plan's steps on CPU tensors and compares with the module run eagerly.

`same(body)` traces a candidate, runs its class on the CPU in a forked child (twice, as the trace calls it: with other
inputs first) and runs the plan on the child's weights and inputs, here and in the replayer. Outputs, and the buffers
and inputs that forward writes, must be equal. Kernels are Python functions by name; memory that nobody wrote is NaN.
"""

from __future__ import annotations

import base64
import copy
import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import pytest
import torch

from verifier.interpreter.device import CpuAsCuda, patch
from verifier.plan.arguments import Arg, PointerArg
from verifier.plan.schema import AtenStep, Generator, LaunchStep, Plan, Program
from verifier.specs import build, dtype_of, leaves, span
from verifier.target import get_target

SEED = 1234

EAGER = """import torch, torch.nn as nn, triton, triton.language as tl
def relu(x):
    o = torch.empty_like(x)
    o.copy_(x.clamp(min=0))
    return o
class Model(nn.Module):
    def forward(self, x): return torch.relu(x)
"""
"""What stands for the prelude of the traced file: the same functions without Triton."""


def relu_k(x: torch.Tensor, o: torch.Tensor, n: int) -> None:
    o[:n] = x[:n].clamp(min=0)


KERNELS: dict[str, Callable[..., None]] = {"relu_k": relu_k}


_OTHER_SHAPES = (
    "aten::log_sigmoid_forward", "aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
)  # fmt: skip
"""Operators whose side results for a backward pass have other shapes on a CPU; nothing here reads them."""


class CpuProgram:
    """Executes one program: a few lines per rule of the schema, written apart from the replayer."""

    def __init__(self, plan: Plan, program: Program, state: Mapping[str, torch.Tensor]) -> None:
        self._plan, self._program, self._state = plan, program, state
        self._memory: dict[int, torch.UntypedStorage] = {}
        self._random = list(map(_seeded, program.generators))
        constants = {c.storage: base64.b64decode(c.data) for c in program.constants}
        for i, storage in enumerate(program.storages):
            if storage.origin in ("parameter", "constant", "scratch", "input", "earlier_input"):
                self._memory[i] = _poisoned(storage.bytes)
            if i in constants:
                raw = torch.tensor(list(constants[i]), dtype=torch.uint8)
                torch.empty(0, dtype=torch.uint8).set_(self._memory[i])[: len(raw)] = raw

    def setup(self) -> None:
        for i, step in enumerate((*self._program.setup, None)):
            for name, parameter in self._program.parameters.items():
                if parameter.ready == i and name in self._state:
                    if parameter.fixed:
                        assert torch.equal(self.view(parameter.value), self._state[name]), name
                    self.view(parameter.value).copy_(self._state[name])
            if step is not None:
                self._step(step)

    def run(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        for value, tensor in zip(self._program.inputs, inputs, strict=True):
            self._memory[self._program.values[value].storage] = tensor.untyped_storage()
        saved = {i: self._bytes(i).clone() for i in self._program.restore}
        for _ in range(2):  # the second run shows what is not restored
            for i, content in saved.items():
                self._bytes(i).copy_(content)
            for i, stream in enumerate(self._program.generators):
                self._random[i] = _seeded(stream) if stream.each_call else self._random[i]
            for step in self._program.forward:
                self._step(step)
            outputs = [self.view(v).clone() for v in self._program.output_values()]
        return outputs

    def input(self, position: int) -> torch.Tensor:
        return self.view(self._program.inputs[position])

    def state(self, name: str) -> torch.Tensor:
        """Bytes of a buffer that forward writes."""
        return self._bytes(self._program.mutated[name])

    def view(self, value: int) -> torch.Tensor:
        v = self._program.values[value]
        return torch.empty(0, dtype=dtype_of(v.dtype)).set_(self._memory[v.storage], v.offset, v.shape, v.stride)

    def _bytes(self, storage: int) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(self._memory[storage])

    def _step(self, step: AtenStep | LaunchStep) -> None:
        if isinstance(step, LaunchStep):
            args = [self._launch_arg(a) for a in step.args if a.t != "constexpr"]
            KERNELS[self._plan.kernels[step.kernel].name](*args)
            return
        op: Any = reduce(getattr, step.op.replace("::", ".").split("."), torch.ops)
        op = op if hasattr(op, "_schema") else op.default
        if step.generator is not None:
            torch.set_rng_state(self._random[step.generator])
        out = op(*map(self._decode, step.args), **{k: self._decode(a) for k, a in step.kwargs.items()})
        if step.generator is not None:
            self._random[step.generator] = torch.get_rng_state()
        made = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        for value, tensor in zip(step.outputs, made, strict=True):
            self._adopt(value, tensor, step)

    def _adopt(self, value: int, tensor: torch.Tensor, step: AtenStep) -> None:
        """Gives a new storage its memory. A kernel of another device may return other strides: then it is copied."""
        v = self._program.values[value]
        if tuple(tensor.shape) != v.shape and step.op in _OTHER_SHAPES:
            return
        assert (tuple(tensor.shape), tensor.dtype) == (v.shape, dtype_of(v.dtype)), (step.op, tensor.shape, v)
        if value in step.mutates:
            return
        if v.storage not in self._memory or self._program.storages[v.storage].origin in ("forward", "setup"):
            self._memory[v.storage] = _poisoned(self._program.storages[v.storage].bytes)
        if step.role != "alloc":
            self.view(value).copy_(tensor)

    def _launch_arg(self, arg: Any) -> Any:
        if not isinstance(arg, PointerArg):
            return arg.v
        dtype = {"*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16}[arg.type]
        return self._bytes(arg.storage)[arg.offset :].view(dtype)

    def _decode(self, arg: Arg) -> Any:
        match arg.t:
            case "tensor":
                return self.view(arg.value)
            case "list" | "tuple":
                return [self._decode(a) for a in arg.items]
            case "none":
                return None
            case "dtype":
                return dtype_of(arg.v)
            case "device":
                return torch.device("cpu")
            case "enum":
                return getattr(torch, arg.v)
            case "complex":
                return complex(arg.re, arg.im)
            case "float":
                return float(arg.v)
        return arg.v


def _seeded(stream: Generator) -> torch.Tensor:
    """State of a stream before its first number."""
    return torch.Generator().manual_seed(SEED if stream.seed is None else stream.seed).get_state()


def _poisoned(size: int) -> torch.UntypedStorage:
    return torch.full((size,), 0xFF, dtype=torch.uint8).untyped_storage()


def eager(source: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Runs the module on the CPU in a forked child: weights, inputs, outputs, mutated state after the second call."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = _eager(source, spec)
        except BaseException:  # noqa: BLE001 - the parent must hear of it
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    assert "error" not in answer, answer["error"]
    return answer


def _eager(source: str, spec: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    patch(get_target("h200"))
    warnings.simplefilter("ignore")
    space: dict[str, Any] = {"__name__": "candidate"}
    draw = torch.Generator().manual_seed(7)

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> torch.Tensor:
        base = torch.randn(span(shape, stride), generator=draw)
        base = base if dtype.is_floating_point else base.mul(3).abs()
        return base.to(dtype).as_strided(shape, stride)

    first, second = (list(leaves(a := [build(s, tensor) for s in spec["inputs"]])) and a for _ in range(2))
    plain = copy.deepcopy(list(leaves(second)))
    with CpuAsCuda(), torch.no_grad():
        exec(compile(source, "candidate.py", "exec"), space)
        torch.manual_seed(SEED)
        model = space["ModelNew"](*[build(s, tensor) for s in spec["init"]])
        state = {k: v.clone() for k, v in _named(model).items()}
        model.cuda()
        model(*first)
        for name, value in _named(model).items():
            value.copy_(state[name])
        output = model(*second)
    found = {"state": state, "inputs": plain, "outputs": [t.clone() for t in leaves(output)],
             "inputs_after": list(leaves(second)), "state_after": _named(model)}  # fmt: skip
    return pickle.loads(pickle.dumps(found))


def _named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}


@pytest.fixture(scope="session")
def same(trace: Callable[..., Any]) -> Callable[..., Any]:
    def check(body: str, inputs: list[Any], tolerance: float) -> None:
        spec = {"inputs": inputs, "init": []}
        traced = trace(body, inputs)
        assert traced.plan is not None, (traced.status, traced.diagnostics, traced.error)
        wanted = eager(EAGER + body, spec)
        torch.manual_seed(SEED)
        program = CpuProgram(traced.plan, traced.plan.programs[0], wanted["state"])
        program.setup()
        outputs = program.run(wanted["inputs"])
        assert len(outputs) == len(wanted["outputs"])
        for got, right in zip(outputs, wanted["outputs"], strict=True):
            _equal(got, right, tolerance)
        for i, right in enumerate(wanted["inputs_after"]):
            _equal(program.input(i), right, tolerance)
        for name in traced.plan.programs[0].mutated:
            right = wanted["state_after"].get(name)
            if right is not None:
                got = program.state(name).view(right.dtype)[: right.numel()].reshape(right.shape)
                _equal(got, right, tolerance)

    return check


def _equal(got: torch.Tensor, right: torch.Tensor, tolerance: float) -> None:
    assert got.shape == right.shape
    assert got.dtype == right.dtype
    torch.testing.assert_close(got, right, rtol=tolerance, atol=tolerance, equal_nan=True)
