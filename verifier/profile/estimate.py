"""Analytic time of plan steps on a target. It ranks variants of a kernel; it does not predict microseconds.

A launch takes the smooth maximum of memory, l2, compute and latency below, plus spill traffic, plus a fixed
launch time. compute is the largest of tensor, fp32, sfu and issue plus a fifth of the other three, which
never hide completely. S is the number of multiprocessors, R the blocks resident on one, P the programs:

- memory   distinct bytes of the buffers touched (never more than requested; small buffers that an earlier
  step left in L2 are free to read), over the sustained DRAM rate
- l2       bytes of the 32-byte sectors requested, over the L2 rate
- tensor   FLOP of matrix products over the sustained tensor rate of their operand class, times the efficiency
  of the instruction and tile (`tile_efficiency`)
- fp32     floating lane operations over the FMA lanes (fp16 at twice, fp64 at its own rate); products without
  a tensor-core instruction count here
- sfu      special function operations over the SFU lanes
- issue    warp instructions of the machine code, loop bodies times their trips, over the issue slots
- latency  one program alone on a multiprocessor, its phases one after the other (loads, products, reductions,
  lane work), times the number of waves

tensor, fp32, sfu and issue are stretched by quantisation: ceil(P/S) / (P/S), and by the heaviest program's
share. memory and l2 are stretched where the bytes in flight (R programs x bytes of a load step x pipeline
depth) are fewer than rate x latency.

What this leaves out: bank conflicts, L2 misses on re-read buffers larger than L2, clock throttling, overlap
of a launch with the next, loops that the compiler unrolled. Rates are in `target.py`, the constants below are
round figures. It was compared with nothing but published orders of magnitude so far: treat a difference under
1.3x as a tie.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from verifier.profile.cubin import Sass
from verifier.profile.roofline import L2, LANE_EFFICIENCY, StepTime
from verifier.profile.work import Work
from verifier.target import Target

_ISSUE_EFFICIENCY = 0.7
_PIPES = ("tensor", "fp32", "sfu", "issue")
_CONTENTION = 0.2
"""Share of the smaller pipes' time that is not hidden behind the largest one."""
_DOT_LATENCY = 45e-9
"""Issue, wait and first use of one matrix product."""
_REDUCTION_LATENCY = 60e-9
"""Shuffles, shared memory and barrier of one reduction across a block."""
_BLOCK_LATENCY = 700e-9
"""Start of a block: parameters, addresses, first fetch of instructions."""
_L2_BYTES_PER_CLOCK = 64
"""What one multiprocessor exchanges with L2."""
_SPILL_BYTES_PER_CLOCK = 64


@dataclass(frozen=True, slots=True)
class LaunchFacts:
    """What the estimate needs to know about one launch."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    stages: int
    blocks_per_sm: int
    work: Work
    buffers: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Kernel parameter to (storage, distinct bytes behind it)."""
    sass: Sass | None = None
    spill_bytes: int = 0
    """Per thread."""

    @property
    def programs(self) -> int:
        return max(1, math.prod(self.grid))


def estimate_launch(facts: LaunchFacts, target: Target, l2: L2 | None = None) -> StepTime:
    """Time of one launch by the formulas at the top of the module. Updates `l2`."""
    l2 = l2 if l2 is not None else L2(target)
    dram = _dram_bytes(facts, l2)
    stretch = _quantisation(facts, target)
    tensor, on_lanes = _product_seconds(facts, target)
    parts = {
        "memory": dram / (target.dram_rate * target.dram_sustained) / _in_flight(facts, target, dram),
        "l2": facts.work.sectors / target.l2_rate / _in_flight_l2(facts, target),
        "tensor": tensor * stretch,
        "fp32": (_lane_seconds(facts.work, target) + on_lanes) * stretch,
        "sfu": facts.work.sfu / (target.sfu_rate * LANE_EFFICIENCY) * stretch,
        "issue": _issue_seconds(facts, target) * stretch,
        "latency": _latency_seconds(facts, target, dram),
    }
    spill = _spill_seconds(facts, target) * stretch
    groups = {k: parts[k] for k in ("memory", "l2", "latency")}
    pipe = max(_PIPES, key=lambda k: parts[k])
    groups[pipe] = parts[pipe] + _CONTENTION * sum(parts[k] for k in _PIPES if k != pipe)
    busy = smooth_maximum(groups.values())
    bound = max(groups, key=lambda k: groups[k])
    if spill > busy:
        bound = "spill"
    if target.launch_seconds > busy + spill:
        bound = "launch"
    parts = {**parts, "spill": spill, "launch": target.launch_seconds}
    return StepTime(facts.name, busy + spill + target.launch_seconds, bound, dram, facts.work.flops, parts)


def smooth_maximum(times: Iterable[float]) -> float:
    """The 6-norm: the largest time where it stands alone, 12% above it where two are equal."""
    known = [t for t in times if t > 0]
    largest = max(known, default=0.0)
    return largest * sum((t / largest) ** 6 for t in known) ** (1 / 6) if known else 0.0


def _dram_bytes(facts: LaunchFacts, l2: L2) -> int:
    total = 0
    for parameter, traffic in facts.work.parameters.items():
        storage, size = facts.buffers.get(parameter, (-1, traffic.total))
        if l2.cold(storage):
            total += min(size, traffic.loaded + traffic.atomic)
        total += min(size, traffic.stored)
        if storage >= 0:
            l2.touch(storage, size)
    return total


def _quantisation(facts: LaunchFacts, target: Target) -> float:
    """Stretch of per-multiprocessor work by whole blocks and by the heaviest program."""
    rounds = math.ceil(facts.programs / target.sms)
    even = facts.programs / target.sms
    return rounds / even * (1 + (facts.work.imbalance - 1) / rounds)


def pipelined(facts: LaunchFacts) -> bool:
    """Whether loads run ahead of their use: asynchronous copies or TMA in the machine code, or stages if
    it is unknown."""
    if facts.sass is None:
        return facts.stages > 1 and bool(facts.work.loops)
    return any(k.startswith(("async copy", "tma")) for k in facts.sass.instructions)


def _depth(facts: LaunchFacts) -> int:
    return max(1, facts.stages - 1) if pipelined(facts) else 1


def _bytes_in_flight(facts: LaunchFacts, target: Target) -> float:
    resident = min(facts.programs, target.sms * max(1, facts.blocks_per_sm))
    per_step = facts.work.loaded / facts.work.load_steps if facts.work.load_steps else math.inf
    return resident * per_step * _depth(facts)


def _in_flight(facts: LaunchFacts, target: Target, dram: int) -> float:
    """Share of the DRAM rate that the bytes in flight can hold up (Little's law). Bytes that hit L2 need
    none."""
    fresh = min(1.0, dram / facts.work.loaded) if facts.work.loaded else 1.0
    needed = target.dram_rate * target.dram_sustained * target.dram_latency
    return min(1.0, max(1e-3, _bytes_in_flight(facts, target) * max(fresh, 0.05) / needed))


def _in_flight_l2(facts: LaunchFacts, target: Target) -> float:
    return min(1.0, max(1e-3, _bytes_in_flight(facts, target) / (target.l2_rate * target.l2_latency)))


def _product_seconds(facts: LaunchFacts, target: Target) -> tuple[float, float]:
    """Seconds of matrix products on the tensor cores, and of those that run on the FMA lanes. All
    multiprocessors busy."""
    tensor = lanes = 0.0
    efficiency = tile_efficiency(facts, target)
    for key, flop in facts.work.dots.items():
        rate = target.tensor_rates.get(key.split()[0])
        if key.startswith("fp32") or rate is None or efficiency == 0:
            lanes += flop / 2 / (target.fp32_rate * LANE_EFFICIENCY)
        else:
            tensor += flop / (rate * target.tensor_sustained * efficiency)
    return tensor, lanes


def tile_efficiency(facts: LaunchFacts, target: Target) -> float:
    """Share of the sustained tensor rate that the instruction and the tile allow; 0 when no tensor-core
    instruction exists.

    Wide instructions (HGMMA of a warpgroup, M = 64 per instruction) read the N x 16 operand from shared memory for
    every 64 rows: N/2 clocks of products against (64 + N)/4 clocks of reads at 128 bytes a clock; UTCHMMA is
    taken to be alike. Warp instructions (HMMA) reach `mma_fallback` of the rate, and read (m + n) x 16 elements per
    warp for m x n x 16 products.
    """
    instructions = facts.sass.tensor if facts.sass is not None else _expected(facts, target)
    if not instructions:
        return 0.0
    wide = any(k.endswith("GMMA") or k.startswith("UTC") for k in instructions)
    base = 1.0 if wide else target.mma_fallback
    total = sum(facts.work.dot_shapes.values())
    if not total:
        return base
    mean = 0.0
    for text, count in facts.work.dot_shapes.items():
        m, n, _ = (int(d) for d in text.split("x"))
        mean += count / total / (_wide_tile(m, n) if wide else _warp_tile(m, n, facts.warps))
    return base / mean


def _expected(facts: LaunchFacts, target: Target) -> dict[str, int]:
    """The instruction that Triton would choose, for a kernel that has not been disassembled."""
    tall = any(int(shape.split("x")[0]) >= 64 for shape in facts.work.dot_shapes)
    wide = target.wide_mma if tall and facts.warps % 4 == 0 else ""
    return {wide or "HMMA": 1}


def _wide_tile(m: int, n: int) -> float:
    return min(1.0, 2 * n / (64 + n)) * min(1.0, m / 64)


def _warp_tile(m: int, n: int, warps: int) -> float:
    """Reads against products for the best split of the tile over the warps; 4096 FLOP and 128 bytes a
    clock."""
    best = 0.0
    for rows in (2**i for i in range(warps.bit_length())):
        columns = warps // rows
        part_m, part_n = max(16, m // rows), max(8, n // columns)
        products = part_m * part_n * 32 * warps / 4096
        reads = (part_m + part_n) * 32 * warps / 128
        used = min(1.0, m * n / (part_m * part_n * warps))
        best = max(best, min(1.0, products / reads) * used)
    return best


def _lane_seconds(work: Work, target: Target) -> float:
    fp64 = target.sms * target.fp64_lanes * target.clock
    return (work.fp32 + work.fp16 / 2) / (target.fp32_rate * LANE_EFFICIENCY) + work.fp64 / (fp64 * LANE_EFFICIENCY)


def executed(facts: LaunchFacts, group: str | None = None) -> float:
    """Warp instructions that one warp runs (of one `group`, or all), loop bodies times their mean trips per
    program.

    Loops of the machine code are matched with those of the text by order where their numbers agree. Otherwise
    every innermost loop gets the largest trip count and every other loop the smallest.
    """
    sass = facts.sass
    if sass is None:
        return 0.0

    def count(instructions: Mapping[str, int]) -> int:
        return sum(instructions.values()) if group is None else instructions.get(group, 0)

    trips = [n / facts.programs for n in facts.work.loops.values()]
    total = float(count(sass.instructions))
    for i, loop in enumerate(sass.loops):
        inner = [o for o in sass.loops if o.depth == loop.depth + 1 and loop.start <= o.start and o.end <= loop.end]
        own = count(loop.instructions) - sum(count(o.instructions) for o in inner)
        guess = (min if inner else max)(trips, default=1.0)
        runs = trips[i] if len(trips) == len(sass.loops) else guess
        total += own * (max(runs, 0.0) - 1)
    return max(total, 0.0)


def _issue_seconds(facts: LaunchFacts, target: Target) -> float:
    slots = target.sms * target.issue_slots * target.clock * _ISSUE_EFFICIENCY
    return executed(facts) * facts.warps * facts.programs / slots


def _spill_seconds(facts: LaunchFacts, target: Target) -> float:
    """Local memory traffic: every LDL and STL of a warp moves 128 bytes through L1."""
    if facts.spill_bytes == 0:
        return 0.0
    moved = executed(facts, "local") if facts.sass is not None else facts.spill_bytes / 2
    rate = target.sms * target.clock * _SPILL_BYTES_PER_CLOCK
    return moved * 128 * facts.warps * facts.programs / rate


def _latency_seconds(facts: LaunchFacts, target: Target, dram: int) -> float:
    """One program alone, phase after phase, times the waves."""
    work, programs = facts.work, facts.programs
    tensor, on_lanes = _product_seconds(facts, target)
    share = target.sms / programs
    lanes = _lane_seconds(work, target) + work.sfu / (target.sfu_rate * LANE_EFFICIENCY) + on_lanes
    fixed = (work.dot_count * _DOT_LATENCY + work.reduction_count * _REDUCTION_LATENCY) / programs
    compute = _phases(tensor * share, lanes * share / _fill(facts.warps) + fixed, facts.warps)
    fresh = min(1.0, dram / work.loaded) if work.loaded else 0.0
    wait = target.l2_latency + fresh * (target.dram_latency - target.l2_latency)
    waits = work.load_steps / programs * wait
    transfer = work.requested / programs / (_L2_BYTES_PER_CLOCK * target.clock)
    ahead = max(waits / _depth(facts), transfer, compute)
    alone = ahead if pipelined(facts) else waits + transfer + compute
    return (_BLOCK_LATENCY + alone) * _rounds(facts, target)


def _fill(warps: int) -> float:
    """Share of the lanes that one block's warps keep busy: one warp per scheduler reaches three quarters."""
    return 1.0 if warps >= 8 else min(1.0, warps / 4) * 0.75


def _phases(tensor: float, other: float, warps: int) -> float:
    """Products and lane work of one block: in turn for one warpgroup, partly at once for two and more."""
    overlap = min(2.0, max(1.0, 1 + (warps / 4 - 1) / 2))
    return max(tensor, other) + min(tensor, other) / overlap


def _rounds(facts: LaunchFacts, target: Target) -> float:
    """Waves, whole ones where programs are alike; uneven programs fill gaps but the heaviest ends last."""
    waves = facts.programs / (target.sms * max(1, facts.blocks_per_sm))
    if facts.work.imbalance < 1.2:
        return float(math.ceil(waves))
    return max(1.0, waves) + facts.work.imbalance - 1
