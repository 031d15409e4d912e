"""The replayer on the CPU: library steps are real, custom kernels are Python functions on the same memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from verifier.gpu.aten import operator
from verifier.gpu.memory import ReplayError
from verifier.gpu.replay import Replayer
from verifier.plan.schema import Alternative, KernelImage, Plan

CPU = torch.device("cpu")
HEAD = "import torch, triton, triton.language as tl\nfrom torch import nn\n"


def floats(address: int, count: int) -> Tensor:
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)


class PythonLauncher:
    """Kernels by name: functions of the addresses of their arguments."""

    def __init__(self, kernels: dict[str, Callable[..., None]] | None = None) -> None:
        self._kernels = kernels or {}
        self.launched: list[tuple[str, str]] = []

    def load(self, image: KernelImage, cubin: bytes) -> Any:
        assert cubin[:4] == b"\x7fELF"
        return self._kernels[image.name]

    def launch(
        self, kernel: Any, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        self.launched.append((image.name, launch.config))
        kernel(*addresses)

    def close(self) -> None:
        self._kernels = {}


def replay(
    plan: Plan, blobs: dict[str, bytes], inputs: Sequence[Tensor], state: dict[str, Tensor], **kernels: Any
) -> Replayer:
    made = Replayer(plan, blobs, "w", device=CPU, launcher=PythonLauncher(kernels))
    made.poison = True
    made.load()
    made.bind(inputs, state)
    made.setup()
    return made


def module_of(source: str, *init: object) -> nn.Module:
    scope: dict[str, Any] = {"__name__": "m"}
    exec(source, scope)
    model: nn.Module = scope["ModelNew"](*init)
    return model


LIBRARY = {
    "views and in-place": """
class ModelNew(nn.Module):
    def forward(self, x):
        y = x.t().contiguous()
        y[1:, ::2] += 3
        z = y.view(-1)[4:8]
        z.mul_(2)
        return y, z.unsqueeze(0)
""",
    "weights, buffers and a cache": """
class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)
        self.register_buffer("scale", torch.arange(5.0))
        self.packed = None
    def forward(self, x):
        if self.packed is None:
            self.packed = self.fc.weight.t().contiguous() * 2
        return x @ self.packed + self.fc.bias * self.scale
""",
    "a buffer that forward changes": """
class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(6))
    def forward(self, x):
        self.seen.add_(x.sum(0))
        return x * self.seen
""",
    "an input that forward changes": """
class ModelNew(nn.Module):
    def forward(self, x):
        x.add_(1)
        return x.sum(), x[0]
""",
    "constants and flags": """
class ModelNew(nn.Module):
    def forward(self, x):
        torch.backends.cuda.matmul.allow_tf32 = True
        w = torch.tensor([[1.5, -2.0]] * 6, device=x.device)
        return torch.relu(x @ w), torch.zeros(2, 3, device=x.device, dtype=torch.int64)
""",
    "a seed and a generator in forward": """
class ModelNew(nn.Module):
    def forward(self, x):
        torch.manual_seed(7)
        g = torch.Generator().manual_seed(3)
        return x + torch.rand(8, 6).to(x.device), x + torch.rand(8, 6, generator=g).to(x.device)
""",
    "channels last": """
class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
    def forward(self, x):
        y = self.conv(x[None, None].contiguous(memory_format=torch.channels_last))
        return nn.functional.batch_norm(y, torch.zeros(3, device=x.device), torch.ones(3, device=x.device))
""",
}


@pytest.mark.parametrize("name", LIBRARY)
def test_a_replay_equals_the_program(name: str, traced: Any) -> None:
    torch.manual_seed(3)
    source = HEAD + LIBRARY[name]
    x = torch.randn(8, 6)
    model = module_of(source)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    plan, blobs = traced(source, [x])
    for seed in (1, 2):
        torch.manual_seed(seed)
        for tensor in state.values():
            tensor.copy_(torch.randn_like(tensor))
        fresh = module_of(source)
        fresh.load_state_dict(state)
        with torch.no_grad():
            expected = fresh(x.clone())
        made = replay(plan, blobs, [x.clone()], state)
        for _ in range(3):
            outputs = made.run()
            assert made.relaid == 0
            expected = expected if isinstance(expected, tuple) else (expected,)
            assert len(outputs) == len(expected)
            for ours, theirs in zip(outputs, expected, strict=True):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs)


KERNEL = (
    HEAD
    + """
@triton.autotune([triton.Config({"B": 64}), triton.Config({"B": 128})], key=["n"])
@triton.jit
def double(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + r, tl.load(x + r, r < n) * 2, r < n)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        double[lambda m: (triton.cdiv(x.numel(), m["B"]),)](x, o, x.numel())
        return o.sum(), o
"""
)


def double(x: int, o: int, n: int, *_scratch: int) -> None:
    floats(o, 48).copy_(floats(x, 48) * 2)


def nothing(*_addresses: int) -> None: ...


def test_a_kernel_finds_its_memory(traced: Any) -> None:
    x = torch.randn(8, 6)
    plan, blobs = traced(KERNEL, [x])
    made = replay(plan, blobs, [x], {}, double=double)
    total, o = made.run()
    assert torch.equal(o, x * 2)
    assert torch.equal(total, (x * 2).sum())


def test_memory_that_no_kernel_writes_shows(traced: Any) -> None:
    x = torch.randn(8, 6)
    plan, blobs = traced(KERNEL, [x])
    made = replay(plan, blobs, [x], {}, double=nothing)
    assert all(t.isnan().all() for t in made.run())


def test_complex_memory_that_nothing_writes_shows(traced: Any) -> None:
    source = (
        HEAD
        + """
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty(3, dtype=torch.complex64, device=x.device)
        o[0] = x[0, 0]
        return o
"""
    )
    x = torch.ones(8, 6)
    plan, blobs = traced(source, [x])
    (o,) = replay(plan, blobs, [x], {}).run()
    assert o.isnan().tolist() == [False, True, True]


def test_an_alternative_is_chosen(traced: Any) -> None:
    x = torch.randn(8, 6)
    plan, blobs = traced(KERNEL, [x])
    position = next(i for i, step in enumerate(plan.program("w").forward) if step.kind == "launch")
    launcher = PythonLauncher({"double": double})
    made = Replayer(plan, blobs, "w", device=CPU, launcher=launcher)
    made.load()
    made.bind([x], {})
    made.setup()
    made.run()
    made.choose({position: 1})
    made.run()
    assert ["B: 64" in config for _, config in launcher.launched] == [True, False]
    for wrong in ({position: 2}, {0: 0}, {99: 0}):
        with pytest.raises(ReplayError, match="no alternative"):
            made.choose(wrong)


def test_inputs_that_are_not_the_plans_are_refused(traced: Any) -> None:
    x = torch.randn(8, 6)
    plan, blobs = traced(KERNEL, [x])
    for wrong in ([], [x, x], [x.half()], [torch.randn(6, 8).t()], [torch.randn(9, 6)[1:]]):
        with pytest.raises(ReplayError, match="input"):
            replay(plan, blobs, wrong, {}, double=double)


def test_a_parameter_of_another_shape_is_refused(traced: Any) -> None:
    source = HEAD + LIBRARY["weights, buffers and a cache"]
    x = torch.randn(8, 6)
    plan, blobs = traced(source, [x])
    with pytest.raises(ReplayError, match="shape"):
        replay(plan, blobs, [x], {"fc.bias": torch.zeros(6)})


def test_a_step_that_lies_about_its_shape_is_refused(traced: Any) -> None:
    x = torch.randn(8, 6)
    plan, blobs = traced(KERNEL, [x])
    program = plan.program("w")
    forged = program.values[program.output_values()[0]].model_copy(update={"shape": (2,), "stride": (1,)})
    values = tuple(forged if i == program.output_values()[0] else v for i, v in enumerate(program.values))
    programs = (program.model_copy(update={"values": values}),)
    made = replay(plan.model_copy(update={"programs": programs}), blobs, [x], {}, double=double)
    with pytest.raises(ReplayError, match="gave"):
        made.run()


def test_intermediate_memory_is_given_back(traced: Any) -> None:
    source = HEAD + "class ModelNew(nn.Module):\n    def forward(self, x):\n        for _ in range(50):\n"
    source += "            x = x + 1\n        return x\n"
    x = torch.zeros(8, 6)
    plan, blobs = traced(source, [x])
    made = replay(plan, blobs, [x], {})
    assert torch.equal(made.run()[0], x + 50)
    held = [i for i in range(len(plan.program("w").storages)) if i in made._memory]
    assert len(held) == 2  # the input and the output


def test_what_a_small_set_up_made_is_put_back_without_its_intermediates(traced: Any) -> None:
    source = HEAD + "class ModelNew(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    source += "        wide = torch.arange(60.0, device='cuda').view(10, 6)\n        self.table = wide.sum(0)\n"
    source += "    def forward(self, x):\n        return x * self.table\n"
    x = torch.rand(8, 6)
    plan, blobs = traced(source, [x])
    made = replay(plan, blobs, [x], {})
    (right,) = (t.clone() for t in made.run())
    assert torch.equal(right, x * torch.arange(60.0).view(10, 6).sum(0))
    storages = made.program.storages
    (kept,) = [i for i, s in enumerate(storages) if s.origin == "setup" and i in made._memory]
    assert sum(s.origin == "setup" for s in storages) > 1
    made._memory.poison(kept)  # a stray store of a kernel
    assert made.run()[0].isnan().all()
    made.setup()
    assert torch.equal(made.run()[0], right)


def test_a_set_up_from_weights_runs_again(traced: Any) -> None:
    source = HEAD + "class ModelNew(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    source += "        self.w = nn.Parameter(torch.zeros(6, device='cuda'))\n"
    source += "        self.twice = self.w.detach() * 2\n    def forward(self, x):\n        return x * self.twice\n"
    x = torch.rand(8, 6)
    plan, blobs = traced(source, [x])
    made = replay(plan, blobs, [x], {"w": torch.ones(6)})
    assert torch.equal(made.run()[0], x * 2)
    made.bind([x], {"w": torch.full((6,), 3.0)})
    made.setup()
    assert torch.equal(made.run()[0], x * 6)


GIVEN = [("fc.weight", "fc.bias"), ("fc.weight",), ("fc.bias",), ()]
DRAWN = {
    "a layer": ("", (0, 2, 1, 2)),
    "another draw after it": ("self.noise = torch.randn(6)", (2, 2, 2, 2)),
    "a value that is read before it changes": (
        "self.noise = self.fc.weight.detach().sum(0)\n        with torch.no_grad(): self.fc.weight.mul_(2)",
        (1, 2, 1, 2),
    ),
    "a part that is drawn again": ("with torch.no_grad(): self.fc.weight[2:].normal_()", (2, 2, 2, 2)),
}
"""What the constructor does after a layer, and how many of the layer's two draws are made, by what is given."""


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", DRAWN)
def test_a_weight_that_is_given_is_not_drawn_where_nothing_depends_on_that(
    name: str, given: tuple[str, ...], traced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, draws = DRAWN[name]
    source = f"{HEAD}class ModelNew(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    source += f"        self.fc = nn.Linear(6, 6)\n        {lines}\n"
    source += (
        "    def forward(self, x):\n        return self.fc(x) + getattr(self, 'noise', torch.zeros(6)).to(x.device)\n"
    )
    x = torch.rand(8, 6)
    plan, blobs = traced(source, [x])
    state = {k: torch.rand(6, 6) if k == "fc.weight" else torch.rand(6) for k in given}
    ran: list[str] = []
    monkeypatch.setattr("verifier.gpu.replay.operator", lambda op: ran.append(op) or operator(op))
    made = replay(plan, blobs, [x], state)
    torch.manual_seed(0)
    model = module_of(source)
    model.load_state_dict(state, strict=False)
    assert torch.equal(made.run()[0], model(x))
    assert ran.count("aten::uniform_") == draws[GIVEN.index(given)]
