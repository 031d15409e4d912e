"""Autotuned kernels: what becomes an alternative, what does not, and when tuning stops."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan import tuning
from verifier.plan.arguments import ConstexprArg
from verifier.plan.schema import Alternative, LaunchStep

Trace = Callable[..., Any]
COPY = "@triton.jit\ndef k(x, o, n, B: tl.constexpr):\n    r = tl.program_id(0) * B + tl.arange(0, B)\n    tl.store(o + r, tl.load(x + r, r < n), r < n)\n"
FOUR = "cfg = [triton.Config({'B': b}) for b in (256, 512, 1024, 2048)]\n"
GRID = "g = lambda m: (triton.cdiv(x.numel(), m['B']),)\n"


def forward(*lines: str, init: str = "") -> str:
    body = ["o = torch.empty_like(x)", GRID.strip(), *lines, "return o"]
    made = f"    def __init__(self):\n        super().__init__()\n        {init}\n" if init else ""
    return (
        "class ModelNew(nn.Module):\n"
        + made
        + "    def forward(self, x):\n"
        + "".join(f"        {line}\n" for line in body)
    )


def launches(traced: Any) -> tuple[LaunchStep, ...]:
    assert traced.plan is not None, (traced.status, traced.diagnostics)
    found: tuple[LaunchStep, ...] = traced.plan.programs[0].launches()
    return found


def codes(traced: Any) -> list[str]:
    return [d["code"] for d in traced.diagnostics]


def blocks(launch: LaunchStep) -> list[int]:
    return [a.grid[0] for a in launch.alternatives]


def constexprs(way: Alternative) -> dict[str, str]:
    return {a.name: a.v for a in way.args if isinstance(a, ConstexprArg)}


def test_heuristics_above_and_below_the_tuner(trace: Trace) -> None:
    traced = trace(
        "@triton.heuristics({'EVEN': lambda a: a['n'] % 2 == 0})\n@triton.autotune([triton.Config({'B': b}, num_warps=w) for b in (256, 512) for w in (4, 8)], key=['n'])\n"
        "@triton.heuristics({'HALF': lambda a: a['B'] // 2})\n@triton.jit\ndef k(x, o, n, B: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr):\n"
        "    r = tl.program_id(0) * B + tl.arange(0, B)\n    tl.store(o + r, tl.load(x + r) * HALF)\n" + forward("k[g](x, o, x.numel())")
    )  # fmt: skip
    (launch,) = launches(traced)
    assert blocks(launch) == [256, 256, 128, 128]
    assert [constexprs(way)["HALF"] for way in launch.alternatives] == [
        "128",
        "128",
        "256",
        "256",
    ]
    assert [way.config.split(", num_ctas")[0] for way in launch.alternatives][:2] == [
        "B: 256, num_warps: 4",
        "B: 256, num_warps: 8",
    ]


def test_prune_functions_and_a_clock_of_its_own(trace: Trace) -> None:
    traced = trace(
        COPY + FOUR + "def early(configs, named, **kw): return [c for c in configs if c.kwargs['B'] >= 512]\ndef model(**kw): return -kw['B']\n"
        "def bench(call, quantiles): raise RuntimeError('no clock here')\n"
        "k = triton.autotune(cfg, key=['n'], prune_configs_by={'early_config_prune': early, 'perf_model': model, 'top_k': 2}, do_bench=bench)(k)\n"
        + forward("k[g](x, o, x.numel())")
    )  # fmt: skip
    (launch,) = launches(traced)
    assert blocks(launch) == [32, 64]


@pytest.mark.parametrize(
    "line",
    [
        "k[g](x, o, x.numel(), num_warps=8)",
        "triton.autotune([triton.Config({}, num_warps=8)], key=[])(k)[g](x, o, x.numel())",
    ],
)
def test_a_setting_given_twice_is_an_error_as_on_a_device(trace: Trace, line: str) -> None:
    traced = trace(
        "@triton.autotune([triton.Config({'B': 256}), triton.Config({'B': 512})], key=[])\n" + COPY + forward(line)
    )
    assert traced.status == "runtime_error"
    assert "num_warps" in traced.diagnostics[0]["message"]


def test_equal_launches_count_once(trace: Trace) -> None:
    traced = trace(
        "@triton.autotune([triton.Config({'B': 512}, num_stages=s) for s in (2, 3, 4)] + [triton.Config({'B': 1024})], key=[])\n"
        + COPY
        + forward("k[g](x, o, x.numel())")
    )
    (launch,) = launches(traced)
    assert blocks(launch) == [128, 64]


def test_tuning_leaves_its_reset_behind_in_the_first_call_only(trace: Trace) -> None:
    """What the autotuner's pre_hook does with reset_only is a step before the launch of the call that tunes."""
    source = (
        COPY + FOUR + "calls = []\ndef pre(a, reset_only=False): calls.append(reset_only)\nk = triton.autotune(cfg, key=['n'], pre_hook=pre)(k)\n"
        + forward("k[g](x, o, x.numel())", "k[g](x, o, x.numel())", "assert calls == [True]")
    )  # fmt: skip
    traced = trace(source)
    assert traced.status == "ok", traced.diagnostics
    assert len(launches(traced)) == 2
    zeroed = trace(
        "@triton.autotune([triton.Config({'B': b}) for b in (256, 512)], key=['n'], reset_to_zero=['o'])\n" + COPY.replace("tl.store(o + r, tl.load(x + r, r < n), r < n)", "tl.atomic_add(o + r, tl.load(x + r, r < n), r < n)")
        + forward("if not hasattr(self, 'kept'): self.kept = torch.ones_like(x)", "k[g](x, self.kept, x.numel())", "return self.kept + 0")
    )  # fmt: skip
    (launch,) = launches(zeroed)
    assert launch.reset_to_zero == ("o",)
    assert [s.op for s in zeroed.plan.programs[0].setup if s.kind == "aten"][-1] == "aten::zero_", (
        "the first call tunes"
    )
    assert "aten::zero_" not in zeroed.forward()


def test_a_key_that_changes_from_call_to_call(trace: Trace) -> None:
    traced = trace(
        COPY
        + FOUR
        + "k = triton.autotune(cfg[:2], key=['n'])(k)\ncalls = []\n"
        + forward("calls.append(0)", "k[g](x, o, x.numel() - len(calls))")
    )
    assert "tunes-every-call" in codes(traced)


@pytest.mark.parametrize(
    ("change", "line", "count"),
    [
        ("class Two:\n    def __init__(self, fn): self.fn, self.arg_names = fn, fn.arg_names\n    def run(self, *a, **kw):\n        self.fn.run(*a, **kw)\n        return self.fn.run(*a, **kw)\nk.fn = Two(k.fn)\n", "k[g](x, o, x.numel())", 2),
        ("", "k[lambda m: (torch.ones_like(x).numel() // m['B'],)](x, o, x.numel())", 1),
        ("from triton import knobs\n", "knobs.runtime.launch_exit_hook = lambda meta: o.add_(1); k[g](x, o, x.numel())", 1),
        ("", "k[g](x, o, x.numel()); o.add_(k.best_config.kwargs['B'])", 1),
    ],
)  # fmt: skip
def test_a_choice_that_reaches_further_is_made_once(trace: Trace, change: str, line: str, count: int) -> None:
    traced = trace(COPY + FOUR + "k = triton.autotune(cfg, key=['n'])(k)\n" + change + forward(line))
    found = launches(traced)
    assert [len(launch.alternatives) for launch in found] == [1] * count
    assert "one-config" in codes(traced)


def test_the_choice_is_undone_where_it_is_read_later(trace: Trace) -> None:
    late = forward(
        "k[g](x, o, x.numel())", "if k.arg_names[0] == 'x' and len(seen) == 1: print(k.best_config)", "seen.append(1)"
    )
    traced = trace(COPY + FOUR + "seen = []\nk = triton.autotune(cfg, key=['n'])(k)\n" + late)
    (launch,) = launches(traced)
    assert len(launch.alternatives) == 1


def test_a_configuration_that_the_target_refuses_at_launch_ends_the_trace(trace: Trace) -> None:
    """On a device the autotuner lets this error through."""
    traced = trace(
        COPY
        + FOUR
        + "k = triton.autotune(cfg, key=['n'])(k)\n"
        + forward("k[lambda m: (1, 70000 if m['B'] == 512 else 1)](x, o, x.numel())")
    )
    assert traced.status == "over_limits"


def test_empty_grids_leave_no_launch(trace: Trace) -> None:
    traced = trace(COPY + FOUR + "k = triton.autotune(cfg, key=['n'])(k)\n" + forward("k[(0,)](x, o, x.numel())"))
    assert launches(traced) == ()
    assert codes(traced) == []


def test_after_the_budget_the_first_configuration_is_still_recorded(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CPU_SECONDS", 0.0)
    traced = trace(
        COPY
        + FOUR
        + "k = triton.autotune(cfg, key=['n'])(k)\n"
        + forward("k[g](x, o, x.numel())", "k[g](x, o, x.numel())")
    )
    assert [len(launch.alternatives) for launch in launches(traced)] == [1, 1]
    (found,) = [d for d in traced.diagnostics if d["code"] == "many-configs"]
    assert found["message"].startswith("3 autotune configurations are left out")


def test_a_configuration_that_does_not_compile_is_left_out(trace: Trace) -> None:
    source = (
        "@triton.autotune([triton.Config({'B': b}) for b in (256, 512, 4096, 1024)], key=['n'])\n"
        + COPY.replace("    r =", "    tl.static_assert(B < 4096)\n    r =")
        + forward("k[g](x, o, x.numel())")
    )
    traced = trace(source)
    (launch,) = launches(traced)
    assert blocks(launch) == [256, 128, 64]
    assert codes(traced) == ["config-dropped"]


def test_pruning_to_one_configuration_still_tunes(trace: Trace) -> None:
    """A device benchmarks the one that is left, and resets after it, in the first call."""
    traced = trace(
        COPY + FOUR + "calls = []\ndef pre(a, reset_only=False): calls.append(reset_only)\n"
        "def early(configs, named, **kw): return configs[:1]\n"
        "k = triton.autotune(cfg, key=['n'], prune_configs_by={'early_config_prune': early}, pre_hook=pre)(k)\n"
        + forward("k[g](x, o, x.numel())", "assert calls == [True]")
    )  # fmt: skip
    assert traced.status == "ok", traced.diagnostics


@pytest.mark.parametrize("where", ["S = torch.zeros(1)", "pass"])
def test_a_hook_reads_what_it_wrote(trace: Trace, where: str) -> None:
    """A value that a configuration's own steps made is known in that configuration."""
    made = "" if where != "pass" else "S = torch.zeros(1); "
    traced = trace(
        COPY + f"{where}\ndef hook(a):\n    {made}S.fill_(a['B'])\n    assert float(S) == a['B'], float(S)\n"
        "k = triton.autotune([triton.Config({'B': b}, pre_hook=hook) for b in (256, 512)], key=['n'])(k)\n"
        + forward("k[g](x, o, x.numel())")
    )  # fmt: skip
    assert traced.status == ("ok" if made else "untraceable"), traced.diagnostics


def test_own_timing_is_said(trace: Trace) -> None:
    traced = trace(COPY + forward("triton.testing.do_bench(lambda: k[(64,)](x, o, x.numel(), B=1024))"))
    assert codes(traced) == ["own-timing"]
