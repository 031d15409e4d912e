"""The plan equals the program, for what language models write; what no plan can hold is refused with a true reason."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from verifier.plan import shapes

_CASE = re.compile(r"^# case: (\S+) \| (.+?) \| (\S+)$", re.M)
_INPUT = re.compile(r"(?P<shape>[\dx]+|scalar)(?::(?P<dtype>\w+))?(?:@(?P<stride>[\d,]+))?")
NEW = "class ModelNew(nn.Module):\n"
INIT = NEW + "    def __init__(self):\n        super().__init__()\n"
FORWARD = NEW + "    def forward(self, x):\n"


def _load() -> dict[str, tuple[list[dict[str, Any]], float, str]]:
    parts = _CASE.split((Path(__file__).parent / "cases.txt").read_text())
    return {
        name: ([_input(text) for text in inputs.split()], float(tolerance), body)
        for name, inputs, tolerance, body in zip(*[iter(parts[1:])] * 4, strict=True)
    }


def _input(text: str) -> dict[str, Any]:
    """`8x16:int64@1,8` as a spec: shape, dtype, strides."""
    found = _INPUT.fullmatch(text)
    assert found is not None, text
    shape = [] if found["shape"] == "scalar" else [int(n) for n in found["shape"].split("x")]
    stride = [int(n) for n in found["stride"].split(",")] if found["stride"] else None
    return {"kind": "tensor", "shape": shape, "dtype": found["dtype"] or "float32", "stride": stride}


CASES = _load()


@pytest.mark.parametrize("name", CASES)
def test_the_plan_equals_the_program(same: Callable[..., Any], name: str) -> None:
    inputs, tolerance, body = CASES[name]
    same(body, inputs, tolerance)


REFUSED: dict[str, tuple[str, str, str]] = {
    "boolean index": (FORWARD + "        return relu(x)[x > 0]\n", "value-read", "`index`"),
    "nonzero": (FORWARD + "        i = torch.nonzero(x)\n        return relu(x)\n", "value-read", "`nonzero`"),
    "list of an input": (FORWARD + "        return torch.tensor(relu(x)[0].tolist(), device='cuda')\n", "value-read", ".item()"),
    "branch on an input": (FORWARD + "        return relu(x) if (x > 0).any() else x\n", "value-read", "branch"),
    "number of a random parameter": (
        INIT + "        self.s = nn.Parameter(torch.randn(1))\n    def forward(self, x): return relu(x) * self.s.item()\n", "value-read", ".item()"),
    "number of a counter": (
        INIT + "        self.n = nn.BatchNorm1d(16, momentum=None)\n    def forward(self, x): return relu(self.n(x))\n", "value-read", ".item()"),
    "packed sequence": (
        INIT + "        self.l = nn.GRU(16, 8, batch_first=True)\n    def forward(self, x):\n"
        "        return relu(self.l(nn.utils.rnn.pack_padded_sequence(x[None], [5], batch_first=True))[1])\n", "value-read", "pack"),
    "random state put back": (
        INIT + "        s = torch.get_rng_state()\n        self.r = torch.randn(16)\n        torch.set_rng_state(s)\n"
        "    def forward(self, x): return relu(x)\n", "rng-state", "seeds"),
    "copied generator": (
        INIT + "        g = torch.Generator(device='cuda').manual_seed(3).clone_state()\n        self.r = torch.randn(16, device='cuda', generator=g)\n"
        "    def forward(self, x): return relu(x) + self.r\n", "rng-state", "seed"),
    "replaced operator": (
        "lib = torch.library.Library('aten', 'IMPL')\nlib.impl('abs', lambda t: relu(t), 'CUDA')\n"
        + FORWARD + "        return relu(x).abs()\n", "replaced-operator", "aten::abs"),
    "backward pass": (
        FORWARD + "        with torch.enable_grad():\n            y = x.detach().requires_grad_()\n"
        "            return relu(torch.autograd.grad((y ** 3).sum(), y)[0])\n", "autograd-engine", "backward"),
    "flex attention": (
        "from torch.nn.attention.flex_attention import flex_attention\n" + FORWARD
        + "        q = x.reshape(1, 1, 8, 16)\n        return relu(torch.compile(flex_attention)(q, q, q))\n", "higher-order", "flex_attention"),
    "lazy module": (INIT + "        self.l = nn.LazyLinear(8)\n    def forward(self, x): return relu(self.l(x))\n", "lazy-module", "lazy"),
    "numpy changes a constant": (
        "import numpy as np\n" + INIT + "        a = np.zeros(16, dtype=np.float32)\n        self.u = torch.from_numpy(a).cuda()\n"
        "        a[:] = 2\n    def forward(self, x): return relu(x) + self.u\n", "host-memory-changed", "host"),
    "constant too large": (
        "import numpy as np\n" + INIT + "        self.u = torch.from_numpy(np.ones((512, 512), dtype=np.float32)).cuda()\n"
        "    def forward(self, x): return relu(x) + self.u[0, :16]\n", "constant-too-large", "1048576"),
    "operator without a shape rule": (FORWARD + "        return relu(torch.geqrf(x)[0])\n", "no-shape-rule", "geqrf"),
    "half complex": (FORWARD + "        return relu(torch.view_as_real(x.half().reshape(8, 8, 2).chalf())[..., 0])\n", "dtype", "complex32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(trace: Callable[..., Any], name: str) -> None:
    body, code, words = REFUSED[name]
    traced = trace(body, [_input("8x16")])
    assert traced.status == "untraceable", (traced.status, traced.diagnostics)
    assert (traced.diagnostics[0]["code"], words in traced.diagnostics[0]["message"]) == (code, True), (
        traced.diagnostics
    )
    assert traced.diagnostics[0]["line"] is not None


def test_a_constant_that_the_plan_does_not_need_may_be_large(trace: Callable[..., Any]) -> None:
    body = "import numpy as np\n" + INIT + (
        "        self.u = torch.from_numpy(np.ones((512, 512), dtype=np.float32)).cuda()\n    def forward(self, x): return relu(x)\n"
    )  # fmt: skip
    assert trace(body).status == "ok"


def test_settings_travel_on_each_step(trace: Callable[..., Any]) -> None:
    traced = trace(
        "from torch.nn.attention import sdpa_kernel, SDPBackend\n"
        + FORWARD
        + "        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'ieee'\n"
        "        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True; a = x @ x.t()\n"
        "        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'tf32'\n"
        "        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False\n        b = x @ x.t(); q = x.view(1, 1, 8, 16)\n"
        "        with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], set_priority=True):\n"
        "            c = nn.functional.scaled_dot_product_attention(q, q, q)\n        return relu(a), b, c\n",
        [_input("8x16")],
    )
    steps = traced.plan.programs[0].library()
    a, b, c = (traced.plan.flags[s.flags] for s in steps if s.role == "compute")
    assert (a.allow_tf32, b.allow_tf32) == (False, True)
    assert (a.cudnn_allow_tf32, b.cudnn_allow_tf32, a.rnn_allow_tf32) == (False, True, True)
    assert (a.fp16_reduction, b.fp16_reduction) == (True, False)
    assert (a.attention_order, set(a.attention)) == (None, {"math", "flash", "efficient", "cudnn", "overrideable"})
    assert (set(c.attention), c.attention_order[:2]) == ({"math", "flash"}, ("math", "flash"))


def test_casts_of_autocast_are_steps(trace: Callable[..., Any]) -> None:
    traced = trace(
        INIT + "        self.l = nn.Linear(16, 8)\n    def forward(self, x):\n"
        "        with torch.autocast('cuda', dtype=torch.bfloat16): return relu(self.l(x).softmax(-1))\n",
        [_input("8x16")],
    )
    program = traced.plan.programs[0]
    of = {s.op: program.values[s.outputs[0]].dtype for s in program.library()}
    assert (of["aten::linear"], of["aten::softmax.int"]) == ("bfloat16", "float32")


def test_random_streams(trace: Callable[..., Any]) -> None:
    """Each draw names its seed; draws that nothing reads stay where a later one of their stream is needed."""
    traced = trace(
        INIT + "        torch.randn(3)\n        self.a = torch.randn(16).cuda()\n        torch.manual_seed(42)\n"
        "        self.b = torch.randn(16, device='cuda')\n        with torch.random.fork_rng():\n            torch.manual_seed(7)\n            torch.randn(2)\n"
        "        self.c = torch.randn(16).cuda()\n        g = torch.Generator(device='cuda').manual_seed(3)\n"
        "        self.d = torch.randn(16, generator=g, device='cuda')\n    def forward(self, x): return relu(x) + self.a + self.b + self.c + self.d\n",
        [_input("8x16")],
    )
    program = traced.plan.programs[0]
    draws = [s for s in program.setup if getattr(s, "generator", None) is not None]
    seeds = [(program.generators[s.generator].device, program.generators[s.generator].seed) for s in draws]
    assert seeds == [("cpu", None), ("cpu", None), ("cuda", 42), ("cpu", 42), ("cuda", 3)]


def test_a_value_read_on_the_host_fixes_its_parameter(trace: Callable[..., Any]) -> None:
    body = INIT + (
        "        self.s = nn.Parameter(torch.full((1,), 0.25))\n        self.t = nn.Parameter(torch.ones(16))\n"
        "        self.k = float(self.t.sum())\n    def forward(self, x): return relu(x) * self.s.item() * self.t * self.k\n"
    )
    parameters = trace(body, [_input("8x16")]).plan.programs[0].parameters
    assert {name: p.fixed for name, p in parameters.items()} == {"s": True, "t": False}


@pytest.mark.parametrize(
    ("call", "stride"),
    [
        ("nn.functional.scaled_dot_product_attention(x, x, x)", (512, 16, 64, 1)),
        ("nn.functional.scaled_dot_product_attention(x.half(), x.half(), x.half())", (512, 128, 16, 1)),
        ("nn.functional.scaled_dot_product_attention(x.double(), x.double(), x.double())", (512, 128, 16, 1)),
        ("nn.LSTM(16, 8, batch_first=True).cuda()(x[0])[0]", (8, 32, 1)),
        ("nn.functional.conv2d(x.to(memory_format=torch.channels_last), x[:2, :, :3, :3])", (168, 1, 28, 2)),
    ],
)
def test_results_lie_in_memory_as_on_a_gpu(trace: Callable[..., Any], call: str, stride: tuple[int, ...]) -> None:
    """Shape (2, 4, 8, 16): strides of the kernels that a CUDA build chooses."""
    traced = trace(FORWARD + f"        relu(x)\n        return {call}\n", [_input("2x4x8x16")])
    program = traced.plan.programs[0]
    shape = program.values[program.output_values()[0]].shape
    kept = tuple(s for s, n in zip(program.values[program.output_values()[0]].stride, shape, strict=True) if n > 1)
    assert kept == tuple(s for s, n in zip(stride, shape, strict=True) if n > 1)


def test_compiled_parts_run_as_they_are_written(trace: Callable[..., Any]) -> None:
    traced = trace(
        "@torch.compile(fullgraph=True)\ndef one(x): return relu(x) * 2\n@torch.jit.script\ndef two(x: torch.Tensor): return x + 1\n"
        + INIT + "        self.l = torch.compile(nn.Linear(16, 8), mode='max-autotune', backend='inductor'); self.compile()\n"
        "        self.t = torch.jit.trace(nn.Linear(16, 8), torch.randn(2, 16))\n    def forward(self, x): return self.l(two(one(x))) + self.t(x)\n",
        [_input("8x16")],
    )  # fmt: skip
    assert traced.forward()[:4] == ["aten::empty_like", "launch", "aten::mul.Tensor", "aten::add.Tensor"]
    assert "l.weight" in traced.plan.programs[0].parameters
    assert "compiled-part" in {d.code for d in traced.findings()}


def test_work_in_a_thread_is_named(trace: Callable[..., Any]) -> None:
    traced = trace(
        "import threading\n"
        + FORWARD
        + "        r = []\n        t = threading.Thread(target=lambda: r.append(x + 1))\n"
        "        t.start(); t.join()\n        return relu(r[0])\n"
    )
    assert "unseen-work" in traced.errors()


def test_grouped_attention_has_a_shape_rule() -> None:
    """Without one, a CUDA build of torch asks the device."""
    query, key = torch.empty(2, 4, 8, 16, device="meta"), torch.empty(2, 2, 8, 16, device="meta")
    op = "aten::scaled_dot_product_attention"
    assert shapes.result(op, (query, key, key), {"enable_gqa": True, "scale": 1.0}).shape == query.shape
    assert shapes.result(op, (query, key, key), {}) is None
