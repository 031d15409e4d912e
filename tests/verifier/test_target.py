"""Names and figures of the targets."""

from __future__ import annotations

import pytest

from verifier.errors import UsageError
from verifier.target import ARCHITECTURES, TARGETS, Target, get_target


def test_a_device_picks_its_architecture_and_an_architecture_its_default_device() -> None:
    assert {name: target.arch for name, target in TARGETS.items()} == {
        "a100": "sm_80",
        "h200": "sm_90a",
        "h100-sxm": "sm_90a",
        "h100-pcie": "sm_90a",
        "b200": "sm_100",
    }
    assert [get_target(arch).name for arch in ("sm_80", "sm_90a", "sm_100")] == ["a100", "h200", "b200"]


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown target 'h300'") as raised:
        get_target("h300")
    assert all(name in str(raised.value.next_step) for name in (*TARGETS, *ARCHITECTURES))


def test_limits_of_a_launch_per_architecture() -> None:
    limits = {a.arch: (a.shared_per_block, a.shared_per_sm, a.cluster_max) for a in ARCHITECTURES.values()}
    assert limits == {
        "sm_80": (163 << 10, 164 << 10, 1),
        "sm_90a": (227 << 10, 228 << 10, 16),
        "sm_100": (227 << 10, 228 << 10, 16),
    }


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_figures_of_a_datasheet_agree_with_each_other(target: Target) -> None:
    by_clock = 2 * target.memory_clock * target.memory_bus / 8
    assert target.dram_rate == pytest.approx(by_clock, rel=0.03)
    fp32 = {"a100": 19.5, "h200": 67, "h100-sxm": 67, "h100-pcie": 51, "b200": 75}
    assert 2 * target.fp32_rate / 1e12 == pytest.approx(fp32[target.name], rel=0.01)
    fp64 = {"a100": 9.7, "h200": 34, "h100-sxm": 34, "h100-pcie": 26, "b200": 37}
    lanes = target.sms * target.fp64_lanes * target.clock
    assert 2 * lanes / 1e12 == pytest.approx(fp64[target.name], rel=0.03)
    assert target.tensor_rates["tf32"] == target.tensor_rates["bf16"] / 2
    assert ("fp8" in target.tensor_rates) == (target.capability >= 90)
    assert {k: getattr(target, k) for k in type(ARCHITECTURES[target.arch]).model_fields} == ARCHITECTURES[
        target.arch
    ].model_dump()
