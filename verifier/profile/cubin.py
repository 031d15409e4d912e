"""What a cubin says about itself: registers, stack, static shared memory, instruction mix, loops, and the
occupancy that follows.

Two tools of the Triton wheel read them: `cuobjdump -res-usage` takes about 3 ms a file; `nvdisasm` takes 0.3 to
0.6 s before its first line, whatever it is given, so one run gets the machine code of many kernels, end to end. A
cubin is untrusted: the tools run under a time limit inside the sandbox, their output is capped and parsed with
regular expressions, and anything unexpected raises `CubinError`. `-res-usage` reports static shared memory only;
what Triton asks for at launch is in its metadata and is passed to `occupancy` by the caller.

Loops are address ranges closed by a backward branch. Short ranges without arithmetic are waits on a barrier
and are left out.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate, pairwise
from pathlib import Path

from verifier.plan import elf
from verifier.profile.loops import Loop, Row, find_loops
from verifier.target import Architecture

_MAX_CUBIN = 64 << 20
_MAX_OUTPUT = 128 << 20
_INSTRUCTION_BYTES = 16
_RESOURCES = re.compile(r"Function ([^\s:]+):\s*\n\s*(REG:.*)")
_FIELD = re.compile(r"([A-Z]+)(?:\[\d+\])?:(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,8})\*/\s+(@!?U?PT?\d*\s+)?([A-Z][A-Z0-9_.]*)([^;]*);", re.M)

_TENSOR = frozenset(
    (
        *("HMMA", "IMMA", "DMMA", "BMMA"),  # of a warp, from sm_80
        *("HGMMA", "QGMMA", "IGMMA", "BGMMA"),  # of a warpgroup, sm_90a
        *("UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA", "QMMA", "OMMA"),  # with tensor memory, sm_100
    )
)
_BASES: dict[str, str] = {
    **dict.fromkeys(("ATOM", "ATOMG", "RED", "REDG", "ATOMS", "REDUX"), "atomic"),
    **dict.fromkeys(("LDS", "LDSM"), "load shared"),
    **dict.fromkeys(("STS", "STSM"), "store shared"),
    **dict.fromkeys(("LDL", "STL"), "local"),
    **dict.fromkeys(("LDTM", "STTM", "UTCCP", "UTCATOMSWS"), "tensor memory"),
    **dict.fromkeys(("BAR", "SYNCS", "DEPBAR", "LDGDEPBAR", "WARPSYNC", "WARPGROUP", "MEMBAR", "FENCE"), "barrier"),
    **dict.fromkeys(("ERRBAR", "CGAERRBAR", "UCGABAR_ARV", "UCGABAR_WAIT", "UTCBAR", "NANOSLEEP"), "barrier"),
    **dict.fromkeys(("MUFU",), "sfu"),
    **dict.fromkeys(("SHFL",), "shuffle"),
    **dict.fromkeys(("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "FSWZADD"), "fp32"),
    **dict.fromkeys(("FFMA2", "FADD2", "FMUL2", "FMNMX3"), "fp32"),
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
    """Machine code of one kernel: static counts per group, and loops in address order."""

    instructions: Mapping[str, int]
    loops: tuple[Loop, ...] = ()

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


def _run(tool: str, arguments: Sequence[str], seconds: float) -> str:
    knobs = import_module("triton.knobs")  # here, so that importing this module stays light
    program = getattr(knobs.nvidia, tool).path
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise CubinError(f"{tool} took over {seconds:g} s") from None
    if done.returncode != 0 or len(done.stdout) > _MAX_OUTPUT:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[:1]
        raise CubinError(f"{tool} cannot read the cubin: {why[0][:200] if why else 'no message'}")
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
    return parse_resources(_run("cuobjdump", ["-res-usage", str(path)], seconds), kernel)


def parse_resources(text: str, kernel: str) -> Resources:
    functions = {name: dict(_FIELD.findall(line)) for name, line in _RESOURCES.findall(text)}
    if kernel not in functions:
        raise CubinError(f"the cubin has no kernel {kernel!r}; it has {sorted(functions)[:8]}")
    usage = functions[kernel]
    try:
        return Resources(int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), int(usage["SHARED"]))
    except KeyError as missing:
        raise CubinError(f"cuobjdump -res-usage has no field {missing}") from None


def machine_code(cubin: bytes, kernel: str) -> bytes:
    """The instructions of `kernel`, 16 bytes each. Raises `CubinError`."""
    code = next((content for name, _, content in elf.sections(cubin) if name == f".text.{kernel}"), b"")
    if not code or len(code) % _INSTRUCTION_BYTES:
        raise CubinError(f"the cubin has no code of a kernel {kernel!r}")
    return code


def disassemble(
    codes: Sequence[bytes], architecture: Architecture, folder: Path, *, seconds: float = 60.0
) -> list[Sass]:
    """Instruction mix and loops of each code, all by one run of the tool. Raises `CubinError`.

    Addresses of loops count from the first code.
    """
    path = folder / "code.bin"
    path.write_bytes(b"".join(codes))
    binary = f"SM{architecture.compiler_arch.removeprefix('sm_')}"
    rows = parse_listing(_run("nvdisasm", ["--binary", binary, str(path)], seconds))
    ends = list(accumulate(len(code) for code in codes))
    places = [bisect_left(rows, end, key=lambda row: row.address) for end in (0, *ends)]
    return [summary(rows[first:last]) for first, last in pairwise(places)]


def parse_listing(text: str) -> list[Row]:
    """Instructions in the order of their addresses."""
    found = (Row(int(a, 16), p, op, rest) for a, p, op, rest in _INSTRUCTION.findall(text))
    return sorted((row for row in found if row.opcode != "NOP"), key=lambda row: row.address)


def summary(rows: Sequence[Row]) -> Sass:
    """Raises `CubinError` where there is no instruction."""
    if not rows:
        raise CubinError("a kernel has no instruction")
    return Sass(
        instructions=dict(Counter(group_of(row.opcode) for row in rows).most_common()),
        loops=find_loops(rows, group_of),
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


def occupancy(target: Architecture, *, registers: int, shared: int, warps: int) -> Occupancy:
    """Resident blocks, as NVIDIA's occupancy calculator counts them.

    `registers` per thread, `shared` bytes per block (static and dynamic, without the driver's share), `warps`
    per block.
    """
    warps = max(1, warps)
    per_warp = _round_up(max(1, registers) * 32, target.register_unit)
    per_block = _round_up(shared + target.shared_reserved, target.shared_unit)
    # Each of the four schedulers has its own quarter of the registers, so warps fit in multiples of four.
    by_registers = (target.registers_per_sm // 4 // per_warp) * 4 // warps
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
