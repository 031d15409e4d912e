"""Rules of the diagnosis: each looks at one timed launch and yields what it finds, with the seconds at
stake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from verifier.profile.cubin import Resources
from verifier.profile.estimate import LaunchFacts, executed, pipelined, tile_efficiency
from verifier.profile.roofline import StepTime
from verifier.target import Target
from verifier.verdict import KernelReport, LaunchReport

_THROUGHPUT = ("memory", "l2", "tensor", "fp32", "sfu", "issue")


@dataclass(frozen=True, slots=True)
class TimedLaunch:
    """One launch with everything that is known about it."""

    facts: LaunchFacts
    time: StepTime
    kernel: KernelReport
    launch: LaunchReport
    resources: Resources
    line: int | None
    """Line of the kernel's definition."""

    @property
    def busy(self) -> float:
        return self.time.seconds - self.time.parts["launch"]

    @property
    def floor(self) -> float:
        """Largest throughput part: what remains when latency is hidden."""
        return max(self.time.parts[k] for k in _THROUGHPUT)


@dataclass(frozen=True, slots=True)
class TimedLibrary:
    name: str
    time: StepTime
    line: int | None
    operands: str = ""
    """Class of a matrix product's operands."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of advice and the seconds that it is about."""

    cost: float
    code: str
    message: str
    line: int | None


Rule = Callable[[TimedLaunch, Target], Iterator[Finding]]


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _tiles(step: TimedLaunch) -> str:
    shapes = sorted(step.facts.work.dot_shapes)
    return f" (tl.dot tiles MxNxK {', '.join(shapes[:3])})" if shapes else ""


def tensor_hint(slow: bool) -> str:
    """Why tl.dot missed the tensor cores. `slow`: its operands are float32."""
    if slow:
        return "input_precision='ieee' on float32 operands keeps it off them; allow TF32 where the contract does"
    return "operands must be fp16, bf16, tf32 or fp8 with M >= 16, N >= 8 and K >= 16"


def occupancy_limit(kernel: KernelReport) -> tuple[str, str]:
    """What limits the resident blocks, registers or shared memory, and what frees it."""
    if kernel.limiter == "registers":
        frees = "a smaller tile, or more warps for the same tile, frees registers"
        return f"{kernel.registers} registers per thread", frees
    frees = f"fewer stages (now {kernel.num_stages}) or a smaller tile frees shared memory"
    return f"{size(kernel.shared_bytes)} of shared memory per block", frees


def _spills(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    stack = step.kernel.spill_bytes
    local = step.kernel.instructions.get("local", 0)
    if stack == 0 or (step.facts.sass is not None and local == 0):
        return
    instructions = f", {local} local loads and stores" if local else ""
    yield Finding(
        step.time.parts["spill"],
        "register-spill",
        f"kernel `{step.kernel.name}`: {stack} B per thread spill to local memory at "
        f"{step.kernel.registers} registers "
        f"with num_warps={step.kernel.num_warps}{instructions}; about "
        f"{microseconds(step.time.parts['spill'])} of "
        f"{microseconds(step.time.seconds)}. Use a smaller tile or more warps{_tiles(step)}.",
        step.line,
    )


def _no_tensor_core(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    dots = step.facts.work.dots
    if not dots or step.facts.sass is None:
        return
    flop = sum(dots.values())
    operands = sorted({key.split()[0] for key in dots})
    slow = {k for k in operands if k == "fp32"}
    if step.facts.sass.tensor and not slow:
        return
    seconds = flop / 2 / target.fp32_rate
    ideal = flop / (target.tensor_rates["tf32" if slow else "bf16"] * target.tensor_sustained)
    yield Finding(
        max(0.0, seconds - ideal),
        "no-tensor-core",
        f"kernel `{step.kernel.name}`: {flop / 1e9:.3g} GFLOP of tl.dot on {'/'.join(operands)} run without "
        "tensor-core "
        f"instructions, about {microseconds(seconds)} instead of {microseconds(ideal)}; {tensor_hint(bool(slow))}"
        f"{_tiles(step)}.",
        step.line,
    )


def _weak_tile(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    if not step.facts.work.dots or step.facts.sass is None or not step.facts.sass.tensor:
        return
    efficiency = tile_efficiency(step.facts, target)
    if efficiency > 0.75:
        return
    names = "/".join(sorted(step.facts.sass.tensor))
    older = target.wide_mma and "HMMA" in step.facts.sass.tensor
    needs = f"{target.wide_mma} needs M >= 64 per tile and num_warps a multiple of 4"
    hint = needs if older else "widen the tile, N first"
    yield Finding(
        step.time.parts["tensor"] * (1 - efficiency),
        "weak-tensor-tile",
        f"kernel `{step.kernel.name}`: tensor-core instruction {names} with "
        f"num_warps={step.kernel.num_warps} reaches about "
        f"{efficiency:.0%} of the sustained rate{_tiles(step)}; {hint}.",
        step.line,
    )


def _low_occupancy(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    exposed = step.time.parts["latency"] - step.floor
    hidden_memory = step.time.bound == "memory"
    if step.kernel.occupancy > 0.3 or (exposed <= 0 and not hidden_memory) or step.launch.waves < 1:
        return
    if step.kernel.limiter not in ("registers", "shared memory"):
        return
    what, hint = occupancy_limit(step.kernel)
    yield Finding(
        max(exposed, 0.1 * step.busy if hidden_memory else 0.0),
        f"low-occupancy-{'registers' if step.kernel.limiter == 'registers' else 'shared'}",
        f"kernel `{step.kernel.name}`: {step.kernel.blocks_per_sm} block(s) of {step.kernel.num_warps} "
        "warps per "
        f"multiprocessor ({step.kernel.occupancy:.0%} occupancy), limited by {what}; little hides latency; "
        f"{hint}{_tiles(step)}.",
        step.line,
    )


def _latency_bound(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    exposed = step.time.parts["latency"] - step.floor
    if step.time.bound != "latency" or step.launch.waves < 1:
        return
    work, programs = step.facts.work, step.facts.programs
    floors = sorted(_THROUGHPUT, key=lambda k: -step.time.parts[k])[:3]
    parts = ", ".join(f"{k} {microseconds(step.time.parts[k])}" for k in floors)
    yield Finding(
        0.5 * exposed,
        "latency-bound",
        f"kernel `{step.kernel.name}`: about {microseconds(step.time.parts['latency'])} because a program's "
        "phases run in turn and only "
        f"{step.kernel.blocks_per_sm} program(s) share a multiprocessor; with full overlap the largest "
        f"parts are {parts}. Per program: "
        f"{work.load_steps / programs:.0f} load steps, {work.dot_count / programs:.0f} tl.dot, "
        f"{work.reduction_count / programs:.0f} "
        f"reductions, {work.sfu / programs / 1e3:.3g} k special-function lane operations.",
        step.line,
    )


def _grid(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    blocks, waves = math.prod(step.launch.grid), step.launch.waves
    if blocks < target.sms:
        yield Finding(
            step.busy * (1 - blocks / target.sms),
            "few-blocks",
            f"kernel `{step.kernel.name}`: the grid has {blocks} programs for {target.sms} "
            "multiprocessors, so "
            f"{1 - blocks / target.sms:.0%} of the GPU is idle; split the work further (smaller "
            "tiles, split-K).",
            step.launch.line,
        )
    elif 1 < waves < 4 and step.launch.tail > 0.25:
        yield Finding(
            step.busy * step.launch.tail / math.ceil(waves),
            "tail",
            f"kernel `{step.kernel.name}`: {blocks} programs are {waves:.2f} waves of "
            f"{round(blocks / waves)}; the last wave is "
            f"{step.launch.tail:.0%} empty; choose a tile or a persistent grid that fills whole waves.",
            step.launch.line,
        )
    if step.facts.work.imbalance > 1.5 and waves < 4:
        yield Finding(
            step.busy * (1 - 1 / step.facts.work.imbalance) / 2,
            "imbalance",
            f"kernel `{step.kernel.name}`: the heaviest program does {step.facts.work.imbalance:.1f}x the "
            "mean work and the grid "
            f"is only {waves:.1f} waves; start heavy programs first or pair heavy with light ones.",
            step.launch.line,
        )


def _rereading(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    requested, distinct = step.facts.work.requested, max(1, step.time.bytes)
    others = max(step.time.parts[k] for k in (*_THROUGHPUT, "latency") if k != "l2")
    excess = step.time.parts["l2"] - others
    if requested < 3 * distinct or excess <= 0:
        return
    yield Finding(
        excess,
        "re-reading",
        f"kernel `{step.kernel.name}`: programs request {size(requested)} from L2 for {size(distinct)} of "
        "distinct data "
        f"({requested / distinct:.0f}x), about {microseconds(step.time.parts['l2'])}; larger tiles re-read "
        f"less{_tiles(step)}.",
        step.line,
    )


def _uncoalesced(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    total = sum(s.requested for s in step.facts.work.sites)
    for site in step.facts.work.sites:
        if site.sector_ratio < 1.9 or site.requested < 0.1 * total:
            continue
        share = (
            site.requested
            * site.sector_ratio
            / max(1.0, sum(s.requested * s.sector_ratio for s in step.facts.work.sites))
        )
        yield Finding(
            step.time.parts["l2"] * share * (1 - 1 / site.sector_ratio),
            "uncoalesced",
            f"kernel `{step.kernel.name}`: the access at line {site.line} touches {site.sector_ratio:.1f}x "
            "the bytes that it uses "
            f"(32-byte sectors); let neighbouring lanes take neighbouring addresses.",
            site.line,
        )


def _narrow_loads(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    groups = step.kernel.instructions
    loads = {int(k.rsplit(" ", 1)[1]): n for k, n in groups.items() if k.startswith(("load global", "async copy"))}
    total = sum(loads.values())
    narrow = sum(n for width, n in loads.items() if width <= 32)
    per_program = step.facts.work.loaded / step.facts.programs
    if total == 0 or narrow < 0.5 * total or per_program < 4096 * step.kernel.num_warps / 4:
        return
    widths = ", ".join(f"{n} of {w} bits" for w, n in sorted(loads.items()))
    yield Finding(
        0.3 * max(step.time.parts["memory"], step.time.parts["issue"]),
        "narrow-loads",
        f"kernel `{step.kernel.name}`: {narrow} of {total} global loads are 32 bits or narrower ({widths}); "
        "make the inner stride a "
        "literal 1 and sizes or offsets known multiples of 16 (tl.constexpr, tl.multiple_of), then 128-bit "
        "loads follow.",
        step.line,
    )


def _not_pipelined(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    loops = step.facts.work.loops
    if not loops or pipelined(step.facts) or step.facts.work.load_steps < 4 * step.facts.programs:
        return
    exposed = step.time.parts["latency"] - step.floor
    if exposed <= 0:
        return
    yield Finding(
        exposed,
        "no-pipelining",
        f"kernel `{step.kernel.name}`: loads in the loop "
        f"({step.facts.work.load_steps / step.facts.programs:.0f} load steps per "
        f"program) wait for memory on every trip, num_stages={step.kernel.num_stages}; num_stages of 2 to 4 "
        "with loads that feed "
        f"tl.dot run ahead of their use.",
        step.line,
    )


def _bound(step: TimedLaunch, target: Target) -> Iterator[Finding]:
    """What the launch is bound by, when that is no fault: the roofs."""
    work, time, programs = step.facts.work, step.time, step.facts.programs
    cost = 0.05 * step.busy
    if time.bound == "memory":
        rate = time.bytes / max(step.busy, 1e-12) / 1e12
        yield Finding(
            cost,
            "memory-bound",
            f"kernel `{step.kernel.name}`: moves {size(time.bytes)} through DRAM in about "
            f"{microseconds(step.busy)} "
            f"({rate:.2g} of "
            f"{target.dram_rate * target.dram_sustained / 1e12:.2g} TB/s); at the roof only fewer bytes "
            "help (fuse, narrower types).",
            step.line,
        )
    elif time.bound == "tensor":
        flop = sum(work.dots.values())
        yield Finding(
            cost,
            "tensor-bound",
            f"kernel `{step.kernel.name}`: {flop / 1e9:.3g} GFLOP of tl.dot at about "
            f"{flop / max(step.busy, 1e-12) / 1e12:.0f} "
            f"TFLOP/s; only less work, narrower operands or a better instruction helps.",
            step.line,
        )
    elif time.bound in ("fp32", "sfu", "issue"):
        yield Finding(
            cost * 2,
            f"{time.bound}-bound",
            f"kernel `{step.kernel.name}`: bound by {_PIPES[time.bound]}, about "
            f"{microseconds(time.parts[time.bound])}; a warp runs {executed(step.facts):.0f} instructions, a "
            f"program {work.sfu / programs:.3g} special-function, {(work.fp32 + work.fp16) / programs:.3g} "
            f"floating and {work.integer / programs:.3g} integer lane operations beside "
            f"{sum(work.dots.values()) / programs / 1e6:.3g} MFLOP of tl.dot; move work out of the inner loop.",
            step.line,
        )
    if work.unknown_trips or work.truncated:
        why = (
            "a trip count depends on data or is too long to follow, so the estimate is a lower bound."
            if work.sampled
            else "its work is not counted; the estimate assumes one pass over its buffers and is a lower bound."
        )
        yield Finding(
            0.0,
            "unknown-work",
            f"kernel `{step.kernel.name}`: {why}",
            step.line,
        )


_PIPES = {"fp32": "floating-point lanes", "sfu": "special function units", "issue": "instruction issue"}

RULES: tuple[Rule, ...] = (
    _spills,
    _no_tensor_core,
    _weak_tile,
    _low_occupancy,
    _latency_bound,
    _grid,
    _rereading,
    _uncoalesced,
    _narrow_loads,
    _not_pipelined,
    _bound,
)
