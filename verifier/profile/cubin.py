"""What a cubin says about itself: registers, stack, static shared memory, instruction mix, loops, and the
occupancy that follows.

`cuobjdump` of the Triton wheel reads the file: `-res-usage` takes about 3 ms, `-sass` 0.3 to 1 s (it starts
`nvdisasm`). A cubin is untrusted: the tools run under a time limit inside the sandbox, their output is capped
and parsed with regular expressions, and anything unexpected raises `CubinError`. `-res-usage` reports static
shared memory only; what Triton asks for at launch is in its metadata and is passed to `occupancy` by the
caller.

Loops are address ranges closed by a backward branch. Short ranges without arithmetic are waits on a barrier
and are left out.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from verifier.profile.loops import Loop, Row, find_loops
from verifier.profile.target import Target

_MAX_CUBIN = 64 << 20
_MAX_OUTPUT = 128 << 20
_RESOURCES = re.compile(r"Function ([^\s:]+):\s*\n\s*(REG:.*)")
_FIELD = re.compile(r"([A-Z]+)(?:\[\d+\])?:(\d+)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$", re.M)
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,8})\*/\s+(@!?U?PT?\d*\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.M)

_TENSOR = frozenset(
    {"HGMMA", "HMMA", "IMMA", "QGMMA", "QMMA", "DMMA", "IGMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "OMMA"}
)
_BASES: dict[str, str] = {
    **dict.fromkeys(("ATOM", "ATOMG", "RED", "REDG", "ATOMS", "REDUX"), "atomic"),
    **dict.fromkeys(("LDS", "LDSM"), "load shared"),
    **dict.fromkeys(("STS", "STSM"), "store shared"),
    **dict.fromkeys(("LDL", "STL"), "local"),
    **dict.fromkeys(("BAR", "SYNCS", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "WARPGROUP", "MEMBAR", "FENCE"), "barrier"),
    **dict.fromkeys(("MUFU",), "sfu"),
    **dict.fromkeys(("SHFL",), "shuffle"),
    **dict.fromkeys(("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "FSWZADD"), "fp32"),
    **dict.fromkeys(("HFMA2", "HADD2", "HMUL2", "HMNMX2", "HSET2", "HSETP2"), "fp16"),
    **dict.fromkeys(("DFMA", "DADD", "DMUL", "DSETP", "DMNMX"), "fp64"),
    **dict.fromkeys(("F2FP", "F2F", "I2F", "F2I", "I2FP", "F2IP", "I2I", "FRND"), "convert"),
    **dict.fromkeys(("BRA", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "BREAK", "BRX", "JMP"), "branch"),
}


class CubinError(ValueError):
    """The bytes are no cubin that the tools can read, or it lacks the kernel. One sentence."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Per function of a cubin, from `cuobjdump -res-usage`."""

    registers: int
    """Per thread."""
    stack: int
    """Local memory per thread, bytes: spills, stack arrays and calls."""
    shared: int
    """Static shared memory per block, bytes; includes what the driver reserves."""


@dataclass(frozen=True, slots=True)
class Sass:
    """Machine code of one function: static counts per group, and loops in address order."""

    instructions: Mapping[str, int]
    loops: tuple[Loop, ...] = ()
    opcodes: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.instructions.values())

    @property
    def tensor(self) -> dict[str, int]:
        """Tensor-core instructions by base name, for example {"HGMMA": 16}."""
        return {k.split()[1]: n for k, n in self.instructions.items() if k.startswith("tensor ")}


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Resident blocks of one kernel on one multiprocessor."""

    blocks: int
    """0 when even one block does not fit."""
    warps: int
    fraction: float
    limiter: str
    """registers, shared memory, warps or blocks."""


def _run(path: Path, flag: str, seconds: float) -> str:
    knobs = import_module("triton.knobs")  # here, so that importing this module stays light
    tool = knobs.nvidia.cuobjdump.path
    try:
        done = subprocess.run([tool, flag, str(path)], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise CubinError(f"cuobjdump {flag} took over {seconds:g} s") from None
    if done.returncode != 0 or len(done.stdout) > _MAX_OUTPUT:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
        raise CubinError(f"cuobjdump {flag} cannot read the cubin: {why[0][:200] if why else 'no message'}")
    return done.stdout.decode("utf-8", "replace")


def write_cubin(data: bytes, folder: Path, name: str) -> Path:
    """Store `data` for the tools. Raises `CubinError` unless it looks like an ELF file of sane size."""
    if not data.startswith(b"\x7fELF"):
        raise CubinError("the cubin is no ELF file")
    if len(data) > _MAX_CUBIN:
        raise CubinError(f"the cubin has {len(data)} bytes, over the limit of {_MAX_CUBIN}")
    path = folder / f"{name}.cubin"
    path.write_bytes(data)
    return path


def read_resources(path: Path, kernel: str, *, seconds: float = 10.0) -> Resources:
    """Registers, stack and static shared memory of `kernel`. Raises `CubinError`."""
    return parse_resources(_run(path, "-res-usage", seconds), kernel)


def parse_resources(text: str, kernel: str) -> Resources:
    functions = {name: dict(_FIELD.findall(line)) for name, line in _RESOURCES.findall(text)}
    if kernel not in functions:
        raise CubinError(f"the cubin has no kernel {kernel!r}; it has {sorted(functions)[:8]}")
    usage = functions[kernel]
    try:
        return Resources(int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), int(usage["SHARED"]))
    except KeyError as missing:
        raise CubinError(f"cuobjdump -res-usage has no field {missing}") from None


def read_sass(path: Path, kernel: str, *, seconds: float = 60.0) -> Sass:
    """Instruction mix and loops of `kernel`. Raises `CubinError`."""
    return parse_sass(_run(path, "-sass", seconds), kernel)


def parse_sass(text: str, kernel: str) -> Sass:
    parts = _FUNCTION.split(text)
    bodies = dict(zip(parts[1::2], parts[2::2], strict=True))
    if kernel not in bodies:
        raise CubinError(f"the disassembly has no kernel {kernel!r}")
    rows = [Row(int(a, 16), p, op, rest) for a, p, op, rest in _INSTRUCTION.findall(bodies[kernel]) if op != "NOP"]
    if not rows:
        raise CubinError(f"the disassembly of {kernel!r} has no instruction")
    return Sass(
        instructions=dict(Counter(group_of(row.opcode) for row in rows).most_common()),
        loops=find_loops(rows, group_of),
        opcodes=dict(Counter(row.opcode for row in rows).most_common()),
    )


def group_of(opcode: str) -> str:
    """Group of one opcode, for example `LDG.E.128` -> `load global 128`, `HGMMA.64x...` -> `tensor HGMMA`."""
    base = opcode.split(".", 1)[0]
    if base in _TENSOR:
        return f"tensor {base}"
    if base in ("LDG", "LDGSTS", "STG"):
        verb = {"LDG": "load global", "LDGSTS": "async copy", "STG": "store global"}[base]
        return f"{verb} {_width(opcode)}"
    if base.startswith("UTMA") or base == "UBLKCP":
        return "tma"
    return _BASES.get(base, "integer and other")


def _width(opcode: str) -> int:
    """Bits per lane of a global access."""
    found = re.search(r"\.(?:U|S)?(8|16|64|128)(?:\.|$)", opcode)
    return int(found.group(1)) if found else 32


def occupancy(target: Target, *, registers: int, shared: int, warps: int) -> Occupancy:
    """Resident blocks, as NVIDIA's occupancy calculator counts them.

    `registers` per thread, `shared` bytes per block (static and dynamic, without the driver's share), `warps`
    per block.
    """
    warps = max(1, warps)
    per_warp = _round_up(max(1, registers) * 32, target.register_unit)
    per_block = _round_up(shared + target.shared_reserved, target.shared_unit)
    # Each of the four schedulers has its own quarter of the registers, so warps fit in multiples of four.
    by_registers = (target.registers // 4 // per_warp) * 4 // warps
    limits = {
        "registers": by_registers,
        "shared memory": target.shared_per_sm // per_block if shared <= target.shared_per_block else 0,
        "warps": target.max_warps // warps,
        "blocks": target.max_blocks,
    }
    blocks = min(limits.values())
    limiter = min(limits, key=lambda k: (limits[k], k != "warps"))
    return Occupancy(blocks, blocks * warps, min(1.0, blocks * warps / target.max_warps), limiter)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
