"""What a Triton launch can be: its arguments, its attributes, its hooks, and how it is written down."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan import abi_sizes
from verifier.plan.cuda_abi import read_facts
from verifier.plan.reader import PlanError, read_plan
from verifier.plan.schema import KernelImage, LaunchStep

Trace = Callable[..., Any]
NEW = "class ModelNew(nn.Module):\n"
TWICE = "@triton.jit\ndef twice(x, o, n, B: tl.constexpr):\n    r = tl.program_id(0) * B + tl.arange(0, B)\n    tl.store(o + r, tl.load(x + r) * 2)\n"


def forward(*lines: str) -> str:
    body = ["o = torch.empty_like(x)", *lines, "return o"]
    return NEW + "    def forward(self, x):\n" + "".join(f"        {line}\n" for line in body)


def launches(traced: Any) -> Any:
    assert traced.plan is not None, (traced.status, traced.diagnostics)
    return traced.plan.programs[0].launches()


def image(traced: Any, launch: LaunchStep) -> KernelImage:
    found: KernelImage = traced.plan.kernels[launch.kernel]
    return found


def block(traced: Any, launch: LaunchStep) -> list[int]:
    """Sizes of the cubin's parameters."""
    kernel = image(traced, launch)
    return list(read_facts(traced.blobs[f"{kernel.cubin}.cubin"], kernel.name).sizes)


def test_every_kind_of_argument(trace: Trace) -> None:
    traced = trace(
        "from typing import NamedTuple\nclass Pair(NamedTuple):\n    a: object\n    b: object\n"
        "@triton.jit\ndef k(x, o, none, one, h: tl.float16, b: tl.bfloat16, f, d: tl.float64, flag, neg, big, u: tl.uint64, s: tl.int8, tup, pair, C: tl.constexpr, given=3.5):\n"
        "    r = tl.arange(0, 128)\n    v = tl.load(x + r) + h + b + f + d + flag + neg + big + u + s + tup[0] + tup[1][0] + tl.load(tup[1][1]) + pair.b + given\n"
        "    if none is None: tl.store(o + r, v)\n"
        + forward("k[(2,)](x, o, None, 1, 1.5, -2.5, float('inf'), 1e-300, True, -5, 1 << 40, (1 << 63) + 5, 3, (7, (2.5, x[1:], 1)), Pair(x, 9), C='hi')")
    )  # fmt: skip
    (launch,) = launches(traced)
    passed = [(a.name, a.type, a.v) for a in launch.args if a.t in ("int", "float")]
    assert passed == [
        ("h", "fp16", 1.5), ("b", "bf16", -2.5), ("f", "fp32", "inf"), ("d", "fp64", 1e-300), ("flag", "u1", 1), ("neg", "i32", -5),
        ("big", "i64", 1 << 40), ("u", "u64", (1 << 63) + 5), ("s", "i8", 3), ("tup.0", "i32", 7), ("tup.1.0", "fp32", 2.5), ("pair.1", "i32", 9), ("given", "fp32", 3.5),
    ]  # fmt: skip
    assert {a.name: a.v for a in launch.args if a.t == "constexpr"} == {
        "none": "None",
        "one": "1",
        "tup.1.2": "1",
        "C": "hi",
    }
    inner = next(a for a in launch.args if a.name == "tup.1.1")
    assert inner.t == "pointer"
    assert inner.offset == 4096
    assert block(traced, launch) == [8, 8, 2, 2, 4, 8, 1, 4, 8, 8, 1, 4, 4, 8, 8, 4, 4, 8, 8]


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [("tl.int32", "1.5", "not an integer"), ("tl.float16", "1e6", "too large"), ("tl.float32", "'1.0'", "not a number"), ("tl.int8", "300", "does not fit")],
)  # fmt: skip
def test_an_argument_of_the_wrong_kind_is_refused(trace: Trace, argument: str, value: str, words: str) -> None:
    traced = trace(
        f"@triton.jit\ndef k(x, o, n: {argument}): tl.store(o, tl.load(x) + n)\n" + forward(f"k[(1,)](x, o, {value})")
    )
    assert traced.status == "runtime_error"
    assert words in traced.diagnostics[0]["message"]


def test_addresses_as_integers_and_as_objects(trace: Trace) -> None:
    traced = trace(
        "class Box:\n    def __init__(self, t): self.t, self.dtype = t, t.dtype\n    def data_ptr(self): return self.t.data_ptr()\n"
        "@triton.jit\ndef k(x, o):\n    r = tl.arange(0, 128)\n    tl.store(o + r, tl.load(x.to(tl.pointer_type(tl.float32)) + r))\n"
        + forward("k[(1,)](x.data_ptr() + 512, Box(o))", "k[(1,)](x.data_ptr(), triton.reinterpret(o, tl.float32))")
    )
    first, second = launches(traced)
    x, o = first.args
    assert (x.t, x.type, x.offset, o.t, o.value) == ("pointer", "i64", 512, "pointer", None)
    assert second.args[1].value is not None
    assert [p.access for p in image(traced, first).params] == ["load", "store"]


def test_one_cubin_launched_in_three_ways_has_three_images(trace: Trace) -> None:
    traced = trace(
        TWICE + forward("twice[(64,)](x, o, 5, B=1024)", "twice[(64,)](x, o, 5, B=1024, launch_cooperative_grid=True)",
                        "twice[(64,)](x, o, 5, B=1024, launch_pdl=True)", "twice[(32,)](x, o, 5, B=1024, num_ctas=2)")
    )  # fmt: skip
    made = [image(traced, launch) for launch in launches(traced)]
    assert [(i.cooperative, i.pdl, i.num_ctas) for i in made] == [
        (False, False, 1),
        (True, False, 1),
        (False, True, 1),
        (False, False, 2),
    ]
    assert len({i.cubin for i in made[:3]}) == 1
    assert len(traced.plan.kernels) == 4


def test_equal_machine_code_for_two_types(trace: Trace) -> None:
    copy_k = TWICE.replace(" * 2", "")
    traced = trace(
        copy_k
        + forward("twice[(64,)](x, o, 5, B=1024)", "twice[(64,)](x.view(torch.int32), o.view(torch.int32), 5, B=1024)")
    )
    made = [image(traced, launch) for launch in launches(traced)]
    assert [i.params[0].type for i in made] == ["*fp32", "*i32"]


def test_a_cooperative_grid_must_fit_at_once(trace: Trace) -> None:
    traced = trace(TWICE + forward("twice[(5000,)](x, o, 5, B=1024, launch_cooperative_grid=True)"))
    assert traced.status == "over_limits"
    assert "cooperative grid of 5000" in traced.diagnostics[0]["message"]


@pytest.mark.parametrize(
    ("grid", "status", "count"),
    [("(64, True)", "ok", 1), ("[64]", "ok", 1), ("lambda m: (64, 1, 1)", "ok", 1), ("(0,)", "ok", 0), ("(-1,)", "ok", 0), ("(65536, 32768)", "ok", 0),
     ("64", "runtime_error", 0), ("(64.0,)", "runtime_error", 0), ("(1, 65536)", "over_limits", 0), ("(-1, -1)", "over_limits", 0), ("(1 << 31,)", "over_limits", 0)],
)  # fmt: skip
def test_grids(trace: Trace, grid: str, status: str, count: int) -> None:
    traced = trace(TWICE + forward(f"twice[{grid}](x, o, 5, B=1024)"))
    assert traced.status == status, traced.diagnostics
    if status == "ok":
        assert len(launches(traced)) == count
        skipped = grid in ("(-1,)", "(65536, 32768)")
        assert ("launch-skipped" in {d["code"] for d in traced.diagnostics}) == skipped


def test_other_ways_to_launch(trace: Trace) -> None:
    traced = trace(
        "import functools\nfrom triton.compiler import ASTSource\n" + TWICE
        + forward("c = twice.warmup(x, o, 5, B=1024, grid=(64,))", "c[(64, 1, 1)](x, o, 5, 1024)", "twice.run(x, o, 5, grid=(63,), warmup=False, B=1024)",
                  "functools.partial(twice[(62,)], B=1024)(x, o, 5)", "twice[(61,)](x, o, 5, B=1024)[(60, 1, 1)](x, o, 5, 1024)",
                  "s = ASTSource(fn=twice, signature={'x': '*fp32', 'o': '*fp32', 'n': 'i32', 'B': 'constexpr'}, constexprs={'B': 512})",
                  "triton.compile(s)[(59, 1, 1)](x, o, 5, 512)")
    )  # fmt: skip
    assert [launch.grid[0] for launch in launches(traced)] == [64, 63, 62, 61, 60, 59]


def test_hooks_run_and_what_they_do_is_recorded(trace: Trace) -> None:
    traced = trace(
        "from triton import knobs\nseen = []\nknobs.runtime.kernel_load_start_hook = lambda *a: seen.append(a[2])\n" + TWICE
        + forward("knobs.runtime.launch_enter_hook = lambda meta: o.zero_()", "knobs.runtime.launch_exit_hook = lambda meta: o.add_(len(seen))",
                  "twice[(64,)](x, o, 5, B=1024)")
    )  # fmt: skip
    assert traced.forward() == ["aten::empty_like", "aten::zero_", "launch", "aten::add_.Tensor"]
    assert traced.plan.programs[0].library()[-1].args[1].v == 1


DEVICE_DESCRIPTOR = (
    "@triton.jit\ndef k(x, o, M: tl.constexpr, N: tl.constexpr):\n    d = tl.make_tensor_descriptor(x, [64, 1024], [1024, 1], [M, N])\n"
    "    e = tl.make_tensor_descriptor(o, [64, 1024], [1024, 1], [M, N])\n    for j in range(0, 1024, N): e.store([tl.program_id(0) * M, j], d.load([tl.program_id(0) * M, j]))\n"
)


def test_the_allocator_is_asked_and_its_memory_is_no_storage(trace: Trace) -> None:
    traced = trace(
        "asked = []\ndef alloc(size, align, stream):\n    asked.append((size, align))\n    return torch.empty(size, dtype=torch.int8, device='cuda')\n"
        + DEVICE_DESCRIPTOR + forward("triton.set_allocator(alloc)", "k[(2,)](x, o, M=32, N=64)", "o.add_(asked[0][0])")
    )  # fmt: skip
    (launch,) = launches(traced)
    scratch = image(traced, launch).global_scratch
    assert (scratch.size, scratch.align) == (256, 128)
    assert traced.forward() == ["aten::empty_like", "launch", "aten::add_.Tensor"]
    assert traced.plan.programs[0].library()[-1].args[1].v == 512
    assert len(traced.plan.programs[0].storages) == 2


def test_without_an_allocator_the_launch_fails_as_it_would(trace: Trace) -> None:
    traced = trace(DEVICE_DESCRIPTOR + forward("k[(2,)](x, o, M=32, N=64)"))
    assert "no allocator was set" in traced.diagnostics[0]["message"]


HOST_DESCRIPTOR = (
    "from triton.tools.tensor_descriptor import TensorDescriptor\n@triton.jit\ndef k(d, unread, e, n, M: tl.constexpr):\n"
    "    e.store([tl.program_id(0) * M, 0], d.load([tl.program_id(0) * M, 0]) * 2)\n"
)


def test_host_descriptors_have_all_that_a_map_needs(trace: Trace) -> None:
    traced = trace(
        HOST_DESCRIPTOR + forward("h = x.half()", "u = TensorDescriptor(h, [64, 1000], [1024, 1], [16, 64], padding='nan')",
                                  "k[(2,)](TensorDescriptor.from_tensor(x, [32, 32]), u, TensorDescriptor.from_tensor(o, [32, 32]), 7, M=32)")
    )  # fmt: skip
    (launch,) = launches(traced)
    kernel = image(traced, launch)
    layouts = [(m.swizzle, m.elem_size, m.elem_type, m.block_size, m.fp4_padded) for m in kernel.tensor_descriptors]
    assert layouts == [(3, 4, 7, (32, 32), False), (3, 2, 6, (16, 64), False), (3, 4, 7, (32, 32), False)]
    unread = launch.args[1]
    assert (unread.t, unread.shape, unread.strides, unread.padding) == ("descriptor", (64, 1000), (1024, 1), "nan")
    assert block(traced, launch) == [*[128, 4, 4, 8, 8] * 3, 4, 8, 8]
    assert [p.access for p in kernel.params] == ["load", "none", "store", "none"]


def test_a_descriptor_that_is_taken_apart() -> None:
    """Without TMA: address, shape, strides and flags, then shape and strides again (Triton 3.6 has one flag)."""
    kinds = ["tensordesc<fp16[64, 32]>", "i32"]
    assert abi_sizes.block_sizes(kinds, maps=False, flags=1) == [8, 8, 8, 8, 8, 1, 4, 4, 8, 8, 4, 8, 8]
    assert abi_sizes.block_sizes(kinds, maps=False, flags=2) == [8, 8, 8, 8, 8, 1, 1, 4, 4, 8, 8, 4, 8, 8]
    ttir = [
        ("!tt.ptr<f16>", "load"),
        *[("i64", "none")] * 4,
        ("i1", "none"),
        *[("i32", "none")] * 2,
        *[("i64", "none")] * 2,
        ("i32", "none"),
    ]
    assert abi_sizes.param_accesses(kinds, ttir) == ["load", "none"]


def test_gluon_kernels_have_no_ttir_of_their_own(trace: Trace) -> None:
    traced = trace(
        "from triton.experimental import gluon\nfrom triton.experimental.gluon import language as gl\n"
        "@gluon.jit\ndef k(x, o, B: gl.constexpr):\n    L: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])\n"
        "    r = gl.program_id(0) * B + gl.arange(0, B, layout=L)\n    gl.store(o + r, gl.load(x + r) * 2)\n" + forward("k[(64,)](x, o, B=1024)")
    )  # fmt: skip
    (launch,) = launches(traced)
    assert [p.access for p in image(traced, launch).params] == ["load", "store"]


ASM = (
    "from triton.language.extra.cuda import globaltimer, smid\n@triton.jit(noinline=True)\ndef dev(p, i): return tl.load(p + i) * 3\n"
    "@triton.jit\ndef k(x, w, o, B: tl.constexpr):\n    r = tl.program_id(0) * B + tl.arange(0, B)\n"
    "    v = tl.inline_asm_elementwise('ld.global.nc.f32 $0, [$1];', '=f,l', [w + r], dtype=tl.float32, is_pure=True, pack=1)\n"
    "    tl.store(o + r, tl.load(x + r) + v + dev(w, tl.program_id(0)) + smid() + globaltimer().to(tl.float32))\n"
    "class ModelNew(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.w = nn.Parameter(torch.ones(64 * 1024))\n"
    "    def forward(self, x):\n        o = torch.empty_like(x)\n        k[(64,)](x, self.w, o, B=1024)\n        return o\n"
)


def test_device_functions_and_inline_asm_that_read_do_not_write(trace: Trace) -> None:
    from verifier.plan.audit import audit
    from verifier.problem import Problem, Role, Workload

    traced = trace(ASM)
    (launch,) = launches(traced)
    assert [p.access for p in image(traced, launch).params] == ["load", "load", "store"]
    problem = Problem(name="t", source="", file="t.py", workloads=(Workload(name="w", roles=frozenset({Role.SMALL})),))
    found = audit(traced.plan, problem, traced.source, traced.blobs)
    codes = {d.code: d.severity for d in found}
    assert (codes["reads-clock"], codes["reads-place"]) == ("error", "advice")
    assert "parameter-mutated" not in {d.code for d in found}


def test_texts_of_asserts_are_no_memory_that_a_kernel_writes(trace: Trace) -> None:
    kernel = TWICE.replace("@triton.jit", "@triton.jit(debug=True)") + "    tl.device_assert(n < 100, 'n too big')\n"
    traced = trace(kernel + forward("twice[(64,)](x, o, 5, B=1024)"))
    (launch,) = launches(traced)
    assert b"n too big" in traced.blobs[f"{image(traced, launch).cubin}.cubin"]
    assert "writable-globals" not in {d.code for d in traced.findings()}


def test_the_reader_compares_parameters_with_the_cubin(trace: Trace) -> None:
    traced = trace(TWICE + forward("twice[(64,)](x, o, 5, B=1024)"))
    for change in ("i64", "fp16"):
        forged = copy.deepcopy(traced.value)
        (key,) = forged["kernels"]
        kernel = forged["kernels"].pop(key)
        kernel["params"][2] |= {"type": change, "size": abi_sizes.SIZES[change]}
        from verifier.plan.triton_image import key as key_of

        forged["kernels"][key_of(kernel)] = kernel
        with pytest.raises(PlanError, match="parameters of"):
            read_plan(forged, traced.blobs)
    forged = copy.deepcopy(traced.value)
    next(iter(forged["kernels"].values()))["pdl"] = True
    with pytest.raises(PlanError, match="key does not match"):
        read_plan(forged, traced.blobs)
