"""The model's direction, not its digits: what must come out slow does, and every formula can be recomputed
by hand.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from verifier.profile.cubin import Loop, Sass
from verifier.profile.estimate import LaunchFacts, estimate_launch, executed, tile_efficiency
from verifier.profile.roofline import StepTime
from verifier.profile.work import Traffic, Work
from verifier.target import get_target

TARGET = get_target("sm_90a")
HGMMA = Sass({"tensor HGMMA": 8, "async copy 128": 8, "integer and other": 100})


def matmul(
    n: int,
    m_tile: int,
    n_tile: int,
    k_tile: int,
    *,
    warps: int = 8,
    stages: int = 3,
    blocks: int = 2,
    **options: Any,
) -> LaunchFacts:
    """Facts of a tiled fp16 matmul of n x n matrices."""
    programs = (n // m_tile) * (n // n_tile)
    trips = programs * (n // k_tile)
    a, b, c = trips * m_tile * k_tile * 2, trips * k_tile * n_tile * 2, n * n * 2
    work = Work(
        programs=programs,
        sampled=1,
        loaded=a + b,
        stored=c,
        sectors=a + b + c,
        parameters={0: Traffic(loaded=a), 1: Traffic(loaded=b), 2: Traffic(stored=c)},
        dots={"fp16 fp32": 2 * n**3},
        dot_shapes={f"{m_tile}x{n_tile}x{k_tile}": trips},
        dot_count=trips,
        load_steps=trips,
        loops={0: trips},
    )
    buffers = {i: (i, n * n * 2) for i in range(3)}
    facts = {"sass": HGMMA, **options}
    return LaunchFacts("mm", (programs, 1, 1), warps, stages, blocks, work, buffers, **facts)


def stream(size: int, *, programs: int, blocks: int = 16) -> LaunchFacts:
    """Facts of an element-wise kernel that reads and writes `size` bytes."""
    work = Work(
        programs=programs, sampled=1, loaded=size, stored=size, sectors=2 * size, load_steps=programs,
        parameters={0: Traffic(loaded=size), 1: Traffic(stored=size)},
    )  # fmt: skip
    return LaunchFacts("copy", (programs, 1, 1), 4, 3, blocks, work, {0: (0, size), 1: (1, size)})


def seconds(facts: LaunchFacts) -> float:
    return estimate_launch(facts, TARGET).seconds


def test_a_large_copy_reaches_the_measured_bandwidth() -> None:
    size = 1 << 30
    done = estimate_launch(stream(size, programs=size // 8192), TARGET)
    assert done.bound == "memory"
    assert done.bytes == 2 * size
    assert done.bytes / done.seconds == pytest.approx(4.3e12, rel=0.02)


def test_a_good_matmul_is_near_the_measured_ceiling_and_never_above() -> None:
    done = estimate_launch(matmul(4096, 128, 256, 64, blocks=1), TARGET)
    rate = 2 * 4096**3 / done.seconds
    assert 0.75 * 790e12 < rate <= 790e12


def test_small_tiles_spills_and_missing_stages_are_slower() -> None:
    good = seconds(matmul(4096, 128, 256, 64, blocks=1))
    assert seconds(matmul(4096, 64, 64, 64, warps=4, blocks=4)) > 1.5 * good
    old = Sass({"tensor HMMA": 8, "async copy 128": 8})
    assert seconds(matmul(4096, 16, 16, 32, warps=4, blocks=16, sass=old)) > 5 * good
    unpiped = Sass({"tensor HGMMA": 8, "load global 128": 8})
    assert seconds(matmul(4096, 128, 256, 64, blocks=1, stages=1, sass=unpiped)) > 1.3 * good
    loop = {"tensor HGMMA": 8, "local": 400}
    spilled = Sass({**loop, "async copy 128": 8}, (Loop(0, 64, 1, loop),))
    assert seconds(matmul(4096, 128, 256, 64, blocks=1, sass=spilled, spill_bytes=800)) > 1.5 * good


def test_no_tensor_core_instruction_costs_an_order_of_magnitude() -> None:
    done = estimate_launch(matmul(4096, 128, 128, 64, sass=Sass({"fp32": 1000})), TARGET)
    assert done.bound == "fp32"
    assert done.seconds > 8 * seconds(matmul(4096, 128, 128, 64))


def test_grid_smaller_than_the_gpu_and_one_block_too_many() -> None:
    size = 1 << 26
    assert seconds(stream(size, programs=4)) > 5 * seconds(stream(size, programs=8192))
    parts = [
        estimate_launch(
            LaunchFacts("k", (p, 1, 1), 4, 1, 1, Work(programs=p, sampled=1, fp32=p * 10**8), {}), TARGET
        ).parts["fp32"]
        for p in (132, 133)
    ]
    assert parts[1] == pytest.approx(2 * parts[0])


def test_nearly_empty_launch_is_launch_bound() -> None:
    done = estimate_launch(stream(1024, programs=1), TARGET)
    assert done.bound == "launch"
    assert done.seconds < 2 * TARGET.launch_seconds


def test_parts_can_be_recomputed() -> None:
    n = 4096
    facts = matmul(n, 128, 128, 64)
    done: StepTime = estimate_launch(facts, TARGET)
    stretch = math.ceil(1024 / 132) / (1024 / 132)
    assert done.bytes == 3 * n * n * 2
    assert done.parts["l2"] == pytest.approx(facts.work.sectors / 9.0e12)
    assert done.parts["tensor"] == pytest.approx(2 * n**3 / 790e12 * stretch, rel=1e-3)
    compute = done.parts["tensor"] + 0.2 * (done.parts["fp32"] + done.parts["sfu"] + done.parts["issue"])
    groups = (done.parts["memory"], done.parts["l2"], done.parts["latency"], compute)
    assert done.seconds == pytest.approx(sum(g**6 for g in groups) ** (1 / 6) + 2.5e-6)
    assert done.bound == "l2"


def test_loop_bodies_count_their_trips() -> None:
    body = {"fp32": 10}
    one = Sass({"fp32": 10, "integer and other": 5}, (Loop(0, 9, 1, body),))
    work = Work(programs=4, sampled=4, loops={0: 4 * 7})
    facts = LaunchFacts("k", (4, 1, 1), 4, 1, 1, work, {}, sass=one)
    assert executed(facts) == 5 + 7 * 10
    assert executed(facts, "fp32") == 70
    never = LaunchFacts("k", (4, 1, 1), 4, 1, 1, Work(programs=4, sampled=4, loops={0: 0}), {}, sass=one)
    assert executed(never) == 5


@pytest.mark.parametrize(
    ("m", "n", "warps", "instruction", "expected"),
    [(128, 128, 4, "HGMMA", 1.0), (64, 32, 4, "HGMMA", 2 * 32 / 96), (128, 128, 4, "HMMA", 0.62)],
)
def test_tile_efficiency(m: int, n: int, warps: int, instruction: str, expected: float) -> None:
    facts = matmul(1024, m, n, 32, warps=warps, sass=Sass({f"tensor {instruction}": 1}))
    assert tile_efficiency(facts, TARGET) == pytest.approx(expected)
