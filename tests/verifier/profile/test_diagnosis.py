"""One synthetic launch per rule: the rule speaks, its sentence has the numbers, and a healthy launch stays
quiet.
"""

from __future__ import annotations

import math
from typing import Any

from verifier.profile.cubin import Resources, Sass, occupancy
from verifier.profile.diagnosis import MAX_ADVICE, diagnose
from verifier.profile.estimate import LaunchFacts, estimate_launch
from verifier.profile.roofline import StepTime
from verifier.profile.rules import TimedLaunch, TimedLibrary
from verifier.profile.work import AccessSite, Traffic, Work
from verifier.target import get_target
from verifier.verdict import Diagnostic, KernelReport, LaunchReport

TARGET = get_target("sm_90a")


def launch(
    work: Work,
    instructions: dict[str, int],
    *,
    warps: int = 4,
    registers: int = 64,
    shared: int = 0,
    stack: int = 0,
    stages: int = 3,
    sizes: tuple[int, ...] = (),
    line: int = 7,
) -> TimedLaunch:
    """A launch whose reports agree with each other."""
    held = occupancy(TARGET, registers=registers, shared=shared, warps=warps)
    grid = (work.programs, 1, 1)
    buffers = {i: (i, size) for i, size in enumerate(sizes)}
    facts = LaunchFacts("k", grid, warps, stages, held.blocks, work, buffers, Sass(instructions), stack)
    kernel = KernelReport(
        name="k",
        cubin="0" * 64,
        registers=registers,
        spill_bytes=stack,
        shared_bytes=shared,
        num_warps=warps,
        num_stages=stages,
        blocks_per_sm=held.blocks,
        occupancy=held.fraction,
        limiter=held.limiter,
        instructions=instructions,
    )
    waves = work.programs / (TARGET.sms * held.blocks)
    report = LaunchReport(
        kernel="k",
        cubin="0" * 64,
        grid=grid,
        threads=32 * warps,
        waves=waves,
        tail=1 - waves / math.ceil(waves),
        line=30,
    )
    return TimedLaunch(facts, estimate_launch(facts, TARGET), kernel, report, Resources(registers, stack, 0), line)


def matmul_work(tile: int = 128, n: int = 4096, **options: Any) -> Work:
    programs = (n // tile) ** 2
    trips = programs * (n // 64)
    loaded = trips * 2 * tile * 64 * 2
    fields: dict[str, Any] = {
        "programs": programs,
        "sampled": 1,
        "loaded": loaded,
        "stored": n * n * 2,
        "sectors": loaded + n * n * 2,
        "parameters": {
            0: Traffic(loaded=loaded // 2),
            1: Traffic(loaded=loaded // 2),
            2: Traffic(stored=n * n * 2),
        },
        "dots": {"fp16 fp32": 2 * n**3},
        "dot_shapes": {f"{tile}x{tile}x64": trips},
        "dot_count": trips,
        "load_steps": trips,
        "loops": {0: trips},
    }
    return Work(**{**fields, **options})


def stream_work(size: int, programs: int, **options: Any) -> Work:
    fields: dict[str, Any] = {
        "programs": programs,
        "sampled": 1,
        "loaded": size,
        "stored": size,
        "sectors": 2 * size,
        "load_steps": programs,
        "parameters": {0: Traffic(loaded=size), 1: Traffic(stored=size)},
    }
    return Work(**{**fields, **options})


def advice(*steps: TimedLaunch | TimedLibrary) -> dict[str, Diagnostic]:
    return {d.code: d for d in diagnose([steps], TARGET)}


SIZES = (4096 * 4096 * 2,) * 3
PIPED = {"tensor HGMMA": 8, "async copy 128": 8}


def test_spills_name_bytes_registers_and_warps() -> None:
    step = launch(matmul_work(), {**PIPED, "local": 400}, registers=255, stack=800, sizes=SIZES)
    found = advice(step)["register-spill"]
    assert "800 B per thread" in found.message
    assert "255 registers" in found.message
    assert found.line == 7
    assert "register-spill" not in advice(launch(matmul_work(), PIPED, sizes=SIZES))


def test_products_without_tensor_cores_rank_first() -> None:
    step = launch(matmul_work(), {"fp32": 1000, "async copy 128": 8}, sizes=SIZES)
    ranked = [d.code for d in diagnose([[step]], TARGET)]
    assert ranked[0] == "no-tensor-core"
    ieee = launch(matmul_work(dots={"fp32 fp32": 2 * 4096**3}), PIPED, sizes=SIZES)
    assert "ieee" in advice(ieee)["no-tensor-core"].message


def test_small_tiles_on_the_old_instruction() -> None:
    step = launch(matmul_work(32), {"tensor HMMA": 4, "async copy 128": 4}, sizes=SIZES)
    found = advice(step)
    assert "HGMMA needs M >= 64" in found["weak-tensor-tile"].message
    assert "weak-tensor-tile" not in advice(launch(matmul_work(), PIPED, sizes=SIZES))


def test_occupancy_names_its_limiter() -> None:
    busy = {"reduction_count": 2 * 10**6}
    by_registers = launch(matmul_work(**busy), PIPED, registers=255, warps=8, sizes=SIZES)
    by_shared = launch(matmul_work(**busy), PIPED, registers=64, shared=200_000, sizes=SIZES)
    assert "255 registers per thread" in advice(by_registers)["low-occupancy-registers"].message
    assert "200 kB of shared memory" in advice(by_shared)["low-occupancy-shared"].message
    assert "latency-bound" in advice(by_shared)


def test_grids_that_do_not_fill_the_gpu() -> None:
    few = advice(launch(stream_work(1 << 28, 33), {"load global 128": 4}, sizes=(1 << 28,) * 2))
    assert "33 programs for 132 multiprocessors" in few["few-blocks"].message
    assert few["few-blocks"].line == 30
    tail = advice(launch(matmul_work(n=1536, programs=133), PIPED, registers=255, warps=8, sizes=SIZES))
    assert "1.01 waves of 132" in tail["tail"].message


def test_rereading_counts_requests_against_distinct_bytes() -> None:
    found = advice(launch(matmul_work(64), PIPED, sizes=SIZES))["re-reading"]
    assert "4.33 GB from L2 for 101 MB" in found.message
    assert "(43x)" in found.message


def test_accesses_narrow_and_scattered() -> None:
    sites = (AccessSite(line=12, parameter=0, requested=1000, sector_ratio=8.0),)
    size = 1 << 28
    work = stream_work(size, 8192, sites=sites, sectors=9 * size)
    found = advice(launch(work, {"load global 16": 128, "load global 128": 2}, sizes=(size, size)))
    assert found["uncoalesced"].line == 12
    assert "8.0x" in found["uncoalesced"].message
    assert "128 of 130 global loads" in found["narrow-loads"].message


def test_a_stream_at_the_roof_is_told_so_and_nothing_else() -> None:
    size = 1 << 30
    step = launch(stream_work(size, size // 8192), {"load global 128": 4}, registers=32, sizes=(size, size))
    found = advice(step)
    assert set(found) == {"memory-bound"}
    assert "2.15 GB through DRAM" in found["memory-bound"].message
    assert "of 4.3 TB/s" in found["memory-bound"].message


def test_many_small_launches_and_library_steps() -> None:
    tiny = TimedLibrary("add", StepTime("add", 3e-6, "launch", 100, 0, {}), 5)
    big = TimedLibrary("mm", StepTime("mm", 50e-6, "tensor", 100, 0, {}), 9)
    many = advice(*[tiny] * 20)
    assert "20 kernels at 2.5 us" in many["launch-bound"].message
    share = advice(tiny, big)["library-share"]
    assert "aten::mm with 50 us" in share.message
    assert share.line == 9


def test_unknown_work_is_said() -> None:
    step = launch(stream_work(1 << 28, 8192, unknown_trips=True), {"load global 128": 4}, sizes=(1 << 28,) * 2)
    assert "lower bound" in advice(step)["unknown-work"].message


def test_advice_is_merged_over_workloads_and_capped() -> None:
    step = launch(matmul_work(), {**PIPED, "local": 400}, registers=255, stack=800, sizes=SIZES)
    (found,) = [d for d in diagnose([[step], [step]], TARGET) if d.code == "register-spill"]
    assert found.count == 2
    different = [
        launch(
            stream_work(1 << 26, 8, sites=(AccessSite(line=i, parameter=0, requested=9, sector_ratio=9),)),
            {"load global 128": 4},
            sizes=(1 << 26,) * 2,
            line=i,
        )
        for i in range(30)
    ]
    assert len(diagnose([different], TARGET)) == MAX_ADVICE
