"""What honest candidates become: steps, pointers, set-up, alternatives, whole library calls."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan.arguments import DescriptorArg, PointerArg
from verifier.plan.fakecuda import fake_mode
from verifier.plan.record import MAX_STEPS, Recorder, Step, Untraceable
from verifier.plan.schema import AtenStep, LaunchStep
from verifier.plan.trace import MAX_PLAN_JSON, too_large
from verifier.sandbox.wire import MAX_HEADER

NEW = "class ModelNew(nn.Module):\n"
HONEST = NEW + "    def forward(self, x): return relu(x)\n"


def t(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    return {"kind": "tensor", "shape": list(shape), "dtype": dtype, "stride": None}


def test_honest_launch_has_its_abi(trace: Callable[..., Any]) -> None:
    traced = trace(HONEST)
    (launch,) = traced.plan.programs[0].launches()
    assert launch.grid == (64, 1, 1)
    assert launch.line == 8
    x, o, n, block = launch.args
    assert (x.t, o.t, n.v, block.v) == ("pointer", "pointer", 65536, "1024")
    image = traced.plan.kernels[launch.kernel]
    assert [p.access for p in image.params] == ["load", "store", "none"]
    assert f"{image.cubin}.cubin" in traced.blobs
    assert f"{image.ttir}.ttir" in traced.blobs
    assert traced.errors() == set()


def test_cubins_do_not_depend_on_the_work_folder(trace: Callable[..., Any]) -> None:
    body = HONEST.replace("relu(x)", "own(x)")
    own = ("@triton.jit\ndef own_k(x, o): tl.store(o, tl.load(x) * 3)\n"
           "def own(x):\n    o = torch.empty_like(x)\n    own_k[(1,)](x, o)\n    return o\n")  # fmt: skip
    assert trace(own + body).plan.kernels.keys() == trace(own + body).plan.kernels.keys()


def test_views_resolve_to_storage_and_offset(trace: Callable[..., Any]) -> None:
    traced = trace(
        NEW
        + "    def forward(self, x):\n        o = torch.empty_like(x)\n        relu_k[(1,)](x[1:], o[1:, 1:], 1000, B=1024)\n        return o\n"
    )
    (launch,) = traced.plan.programs[0].launches()
    x, o = launch.args[:2]
    assert isinstance(x, PointerArg)
    assert isinstance(o, PointerArg)
    assert (x.offset, o.offset) == (4096, 4100)
    assert launch.kernel != trace(HONEST).plan.programs[0].launches()[0].kernel, "4100 is not divisible by 16"


def test_autotune_records_every_configuration_that_fits(trace: Callable[..., Any]) -> None:
    traced = trace(
        "def zero(a): a['o'].zero_()\n"
        "@triton.autotune([triton.Config({'B': 256}, pre_hook=zero), triton.Config({'B': 512}, num_warps=8, pre_hook=zero),\n"
        "                  triton.Config({'B': 2097152}, pre_hook=zero)], key=['n'], reset_to_zero=['o'])\n"
        "@triton.jit\ndef total(x, o, n, B: tl.constexpr):\n    tl.static_assert(B < 2048)\n"
        "    r = tl.program_id(0) * B + tl.arange(0, B)\n    tl.atomic_add(o, tl.sum(tl.load(x + r, r < n)))\n"
        + NEW + "    def forward(self, x):\n        o = torch.empty(1, device='cuda')\n"
        "        total[lambda m: (triton.cdiv(x.numel(), m['B']),)](x, o, x.numel())\n        return o\n"
    )  # fmt: skip
    (launch,) = traced.plan.programs[0].launches()
    assert [a.grid[0] for a in launch.alternatives] == [256, 128]
    assert [traced.plan.kernels[a.kernel].num_warps for a in launch.alternatives] == [4, 8]
    assert [[b.op for b in a.before] for a in launch.alternatives] == [["aten::zero_"]] * 2
    assert launch.reset_to_zero == ("o",)
    assert [d.code for d in traced.findings()] == ["config-dropped"]


def test_all_configurations_too_large(trace: Callable[..., Any]) -> None:
    traced = trace(
        "@triton.autotune([triton.Config({'Z': 70000}), triton.Config({'Z': 80000})], key=[])\n"
        "@triton.jit\ndef first(x, o, Z: tl.constexpr): tl.store(o, tl.load(x))\n"
        + NEW
        + "    def forward(self, x):\n        o = torch.empty_like(x)\n        first[lambda m: (1, 1, m['Z'])](x, o)\n        return o\n"
    )
    assert traced.status == "over_limits"
    assert "65535" in traced.diagnostics[0]["message"]


def test_too_much_shared_memory(trace: Callable[..., Any]) -> None:
    traced = trace(
        "@triton.jit\ndef mm(a, c, K, M: tl.constexpr, N: tl.constexpr, B: tl.constexpr):\n    r = tl.arange(0, B)\n"
        "    m = tl.arange(0, M)\n    n = tl.arange(0, N)\n    acc = tl.zeros((M, N), tl.float32)\n"
        "    for k in range(0, K, B):\n        v = tl.load(a + m[:, None] * K + k + r[None])\n        w = tl.load(a + (k + r[:, None]) * K + n[None])\n"
        "        acc = tl.dot(v, w, acc)\n    tl.store(c + m[:, None] * N + n[None], acc)\n"
        + NEW
        + "    def forward(self, x):\n        o = torch.empty_like(x)\n"
        "        mm[(1,)](x.half(), o, 1024, M=128, N=256, B=64, num_stages=5, num_warps=8)\n        return o\n"
    )
    assert traced.status == "over_limits"
    assert "232448" in traced.diagnostics[0]["message"]


def test_heuristics_and_libdevice(trace: Callable[..., Any]) -> None:
    traced = trace(
        "from triton.language.extra import libdevice\n@triton.heuristics({'EVEN': lambda a: a['n'] % a['B'] == 0})\n"
        "@triton.jit\ndef th(x, o, n, B: tl.constexpr, EVEN: tl.constexpr):\n    r = tl.program_id(0) * B + tl.arange(0, B)\n"
        "    if EVEN: tl.store(o + r, libdevice.tanh(tl.load(x + r)))\n"
        + NEW + "    def forward(self, x):\n        o = torch.empty_like(x)\n        th[(64,)](x, o, x.numel(), B=1024)\n        return o\n"
    )  # fmt: skip
    (launch,) = traced.plan.programs[0].launches()
    assert {a.name: a.v for a in launch.args if a.t == "constexpr"} == {"B": "1024", "EVEN": "True"}


def test_tma_descriptors(trace: Callable[..., Any]) -> None:
    traced = trace(
        "from triton.tools.tensor_descriptor import TensorDescriptor\n@triton.jit\ndef copy(d, o, M: tl.constexpr, N: tl.constexpr):\n"
        "    v = d.load([tl.program_id(0) * M, 0])\n    r = tl.program_id(0) * M + tl.arange(0, M)\n"
        "    tl.store(o + r[:, None] * 1024 + tl.arange(0, N)[None], v)\n"
        + NEW + "    def forward(self, x):\n        o = torch.empty_like(x)\n"
        "        copy[(2,)](TensorDescriptor.from_tensor(x, [32, 64]), o, M=32, N=64)\n        return o\n"
    )  # fmt: skip
    (launch,) = traced.plan.programs[0].launches()
    descriptor = launch.args[0]
    assert isinstance(descriptor, DescriptorArg)
    assert (descriptor.shape, descriptor.strides, descriptor.block) == ((64, 1024), (1024, 1), (32, 64))
    image = traced.plan.kernels[launch.kernel]
    assert [p.access for p in image.params] == ["load", "store"]
    assert image.tensor_descriptors[0].elem_size == 4


def test_cuda_graph_is_seen_through(trace: Callable[..., Any]) -> None:
    traced = trace(
        NEW + "    g = None\n    def forward(self, x):\n        if self.g is None:\n            self.x = x.clone()\n"
        "            with torch.cuda.stream(torch.cuda.Stream()): relu(self.x)\n            self.g = torch.cuda.CUDAGraph()\n"
        "            with torch.cuda.graph(self.g): self.o = relu(self.x)\n        self.x.copy_(x)\n        self.g.replay()\n        return self.o\n"
    )
    program = traced.plan.programs[0]
    assert traced.forward() == ["aten::copy_", "aten::empty_like", "launch"]
    assert program.setup == ()
    assert "scratch" in {s.origin for s in program.storages}
    assert traced.errors() == set()


def test_cached_weights_become_setup_after_the_parameter(trace: Callable[..., Any]) -> None:
    traced = trace(
        NEW
        + "    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(1024, 64)\n        self.wt = None\n"
        "    def forward(self, x):\n        if self.wt is None: self.wt = self.l.weight.t().contiguous()\n        return relu(x @ self.wt)\n"
    )
    program = traced.plan.programs[0]
    assert [s.op for s in program.setup if isinstance(s, AtenStep)] == [
        "aten::uniform_",
        "aten::_to_copy",
        "aten::clone",
    ]
    assert program.parameters["l.weight"].ready == 1
    assert "l.bias" not in program.parameters
    assert traced.forward() == ["aten::matmul", "aten::empty_like", "launch"]
    assert traced.errors() == set()


def test_mutated_buffers_are_restored(trace: Callable[..., Any]) -> None:
    traced = trace(
        NEW
        + "    def __init__(self):\n        super().__init__()\n        self.n = nn.BatchNorm1d(1024)\n    def forward(self, x): return relu(self.n(x))\n"
    )
    program = traced.plan.programs[0]
    assert set(program.mutated) == {"n.running_mean", "n.running_var", "n.num_batches_tracked"}
    assert set(program.mutated.values()) == set(program.restore)
    assert "aten::batch_norm" not in [s.op for s in program.setup if isinstance(s, AtenStep)]
    assert traced.errors() == set()
    assert "carried-state" not in {d.code for d in traced.findings()}


STORE_PART = (
    "@triton.jit\ndef part(x, o, B: tl.constexpr):\n    r = tl.arange(0, B)\n    tl.store(o + r, tl.load(x + r))\n"
)


@pytest.mark.parametrize(
    ("made", "lazily", "setup"),
    [("zeros", False, ["aten::zeros"]), ("zeros", True, ["aten::zeros"]), ("empty", False, [])],
)
def test_what_a_kernel_may_leave_in_a_buffer_stays(
    trace: Callable[..., Any], made: str, lazily: bool, setup: list[str]
) -> None:
    """A kernel stores into the first places of a buffer that the next one reads as a whole."""
    line = f"self.b = torch.{made}(64, device='cuda')"
    first, later = ("self.b = None", f"if self.b is None: {line}") if lazily else (line, "pass")
    traced = trace(
        STORE_PART + NEW + f"    def __init__(self):\n        super().__init__()\n        {first}\n    def forward(self, x):\n        {later}\n"
        "        part[(1,)](x, self.b, B=16)\n        return relu(self.b)\n"
    )  # fmt: skip
    program = traced.plan.programs[0]
    assert [s.op for s in program.setup] == setup
    assert len(program.restore) == len(setup)
    assert traced.errors() == set()


def test_library_calls_stay_whole(trace: Callable[..., Any]) -> None:
    traced = trace(
        NEW
        + "    def __init__(self):\n        super().__init__()\n        self.l = nn.Linear(64, 64)\n        self.n = nn.LayerNorm(64)\n"
        "    def forward(self, x):\n        q = x.view(1, 8, 128, 64)\n"
        "        return relu(self.n(self.l(torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True))))\n"
    )
    assert traced.forward()[:3] == ["aten::scaled_dot_product_attention", "aten::linear", "aten::layer_norm"]
    assert "random" not in {d.code for d in traced.findings()}


def test_constants_travel_in_the_plan(trace: Callable[..., Any]) -> None:
    traced = trace(
        "import numpy as np\n"
        + NEW
        + "    def __init__(self):\n        super().__init__()\n        self.t = torch.tensor([1., 2., 3.], device='cuda')\n"
        "        self.a = torch.from_numpy(np.arange(4, dtype=np.float32)).cuda()\n        self.d = [v.item() for v in torch.linspace(0, 3, 4)]\n"
        "    def forward(self, x): return relu(x) * self.t[1] * self.a[2] * self.d[3]\n"
    )
    program = traced.plan.programs[0]
    assert sorted(len(c.data) for c in program.constants) == [16, 24]
    last = [s for s in program.forward if isinstance(s, AtenStep)][-1]
    assert last.args[1].v == 3.0


def test_pointer_tables_and_value_reads_name_their_line(trace: Callable[..., Any]) -> None:
    table = trace(
        NEW + "    def forward(self, x):\n        torch.tensor([x.data_ptr()], device='cuda')\n        return relu(x)\n"
    )
    assert (table.status, table.diagnostics[0]["code"], table.diagnostics[0]["line"]) == (
        "untraceable",
        "pointer-table",
        14,
    )
    read = trace(NEW + "    def forward(self, x):\n        n = x.cpu().numpy()\n        return relu(x)\n")
    assert (read.status, read.diagnostics[0]["code"], read.diagnostics[0]["line"]) == (
        "untraceable",
        "value-read",
        14,
    )


def test_the_device_answers_as_the_target(trace: Callable[..., Any]) -> None:
    traced = trace(
        NEW + "    def __init__(self):\n        super().__init__()\n        p = torch.cuda.get_device_properties('cuda')\n"
        "        assert torch.cuda.is_available() and p.multi_processor_count == 132 and torch.cuda.get_device_capability() == (9, 0)\n"
        "        u = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())\n"
        "        assert u['max_shared_mem'] == 232448 and torch.cuda.current_stream().cuda_stream == 0\n"
        "        e = torch.cuda.Event(enable_timing=True); e.record(); torch.cuda.synchronize(); torch.cuda.mem_get_info()\n"
        "        self.w = nn.Parameter(torch.ones(4, device='cuda')); self.register_buffer('b', torch.arange(8))\n"
        "    def forward(self, x):\n        assert x.is_cuda and x.device == torch.device('cuda:0') and x.is_contiguous() and self.b.is_cuda\n"
        "        assert x.data_ptr() % 16 == 0 and x[0, 1:].data_ptr() == x.data_ptr() + 4\n"
        "        with torch.cuda.device(x.device): return relu(x.to('cuda').cuda()) * self.w.sum()\n"
    )  # fmt: skip
    assert traced.status == "ok", traced.diagnostics


def test_a_reference_can_be_traced(trace: Callable[..., Any]) -> None:
    traced = trace(HONEST, name="Model")
    assert traced.forward() == ["aten::relu"]


def test_two_workloads_two_programs(trace: Callable[..., Any]) -> None:
    traced = trace(HONEST, workloads=2)
    assert [p.workload for p in traced.plan.programs] == ["w0", "w1"]
    assert traced.errors() == set()
    stale = trace(
        "C = {}\n"
        + NEW
        + "    def forward(self, x):\n        k = len(C) // 4\n        C[len(C)] = relu(x)\n        return C[0] if k else C[len(C) - 1]\n",
        workloads=3,
    )
    assert "foreign-output" in stale.errors()


def test_running_statistics_that_no_output_needs_are_no_foreign_result(trace: Callable[..., Any]) -> None:
    """A buffer replaced by a new tensor on every call, as models write batch norm by hand."""
    body = (
        NEW
        + "    def __init__(self):\n        super().__init__()\n        self.register_buffer('mean', torch.zeros(()))\n"
        + "    def forward(self, x):\n        self.mean = 0.9 * self.mean + 0.1 * x.mean()\n        return relu(x)"
    )
    assert "foreign-output" not in trace(body + "\n").errors()
    assert "foreign-output" in trace(body + " + self.mean\n").errors()


def test_each_call_may_have_as_many_steps_as_a_program() -> None:
    """An earlier call does not use up the steps of the one that counts."""
    recorder = Recorder(fake_mode(), "candidate.py")
    for phase in ("call", "plan"):
        recorder.enter(phase)
        for _ in range(MAX_STEPS):
            recorder.append(Step({}, phase))
    with pytest.raises(Untraceable):
        recorder.append(Step({}, "plan"))
    assert [b["code"] for b in recorder.blockers] == ["too-many-steps"]


def test_a_plan_fits_beside_its_reference() -> None:
    """Both go to the profile in one header."""
    assert 2 * MAX_PLAN_JSON < MAX_HEADER
    assert too_large({"a": "x" * 100}, most=200) is None
    assert "put the loop into a kernel" in str(too_large({"a": "x" * 100}, most=100))


def test_launch_step_kind_is_closed(trace: Callable[..., Any]) -> None:
    assert all(isinstance(s, AtenStep | LaunchStep) for s in trace(HONEST).plan.programs[0].forward)
