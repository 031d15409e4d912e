"""The plan's schema: frozen, strict records with caps on every count and size. `reader.read_plan` checks what
types cannot.

A value is a view of a storage; a step names values (aten) or byte offsets into storages (launches). Ids count
from 0 within one program. The records of arguments are in `arguments.py`. Nothing here loads torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from verifier.plan.arguments import (
    Arg,
    Dim,
    Dims,
    DType,
    Id,
    LaunchArg,
    Line,
    Name,
    Part,
    Sha,
    Size,
    values_in,
)
from verifier.plan.textutil import shown

MAX_CONSTANT_BASE64 = 360 << 10
MAX_PROGRAM_STEPS = 60_000

# -- kernels ---------------------------------------------------------------------------------------


Edge = Annotated[int, Field(ge=1, le=1024)]


class Scratch(Part):
    """Scratch memory per block, bytes; a launch allocates size x blocks x CTAs."""

    size: Annotated[int, Field(ge=0, le=1 << 30)]
    align: Annotated[int, Field(ge=1, le=4096)]


class Param(Part):
    """One launch parameter. `access` says what the TTIR does with the memory behind it."""

    name: Name
    type: Name
    size: Annotated[int, Field(ge=1, le=128)]
    access: Literal["none", "load", "store", "both"]


class DescriptorMeta(Part):
    """How the compiler wants a descriptor to be encoded; a copy of Triton's tensordesc_meta."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    swizzle: Annotated[int, Field(ge=0, le=16)] = 0
    elem_size: Annotated[int, Field(ge=0, le=16)] = 0
    elem_type: Annotated[int, Field(ge=0, le=64)] = 0
    block_size: Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 16)], ...], Field(max_length=5)] = ()
    fp4_padded: bool = False
    is_im2col: bool = False


class Assembly(Part):
    """What Triton's assembler was told beside the PTX. `options` are the candidate's own words for it."""

    fp_fusion: bool = True
    line_info: bool = True
    optimized: bool = True
    options: Annotated[str, Field(max_length=1000)] = ""


SymbolName = Annotated[str, Field(min_length=1, max_length=1024)]
Block = Annotated[tuple[Edge, Edge, Edge], Field()]


class KernelImage(Part):
    """A compiled kernel. Its cubin, TTIR, PTX and what NVRTC was given are blobs by SHA-256.

    A kernel of CUDA C++ has no TTIR, takes no scratch pointers, and one image stands for one launch geometry.
    """

    language: Literal["triton", "cuda"] = "triton"
    name: SymbolName
    cubin: Sha
    ttir: Sha | None
    ptx: Sha
    source: Sha | None = None
    """The program of a CUDA kernel (`rebuild.note`); needed where the machine code is made again."""
    assembly: Assembly = Assembly()
    block: Block | None = None
    """Threads of a block by axis, for CUDA; a Triton block has num_warps x 32 in x."""
    cluster: Block | None = None
    """Blocks of a cluster by axis, for CUDA; Triton's has num_ctas in x."""
    num_warps: Annotated[int, Field(ge=1, le=32)]
    num_stages: Annotated[int, Field(ge=0, le=64)]
    num_ctas: Annotated[int, Field(ge=1, le=16)]
    shared: Annotated[int, Field(ge=0, le=1 << 20)]
    """Dynamic shared memory of a block, bytes."""
    global_bytes: Size
    """Writable device memory that the cubin itself carries, bytes; 0 for every honest Triton kernel."""
    global_scratch: Scratch
    profile_scratch: Scratch
    cooperative: bool
    pdl: bool
    params: Annotated[tuple[Param, ...], Field(max_length=512)]
    """In launch order. A Triton cubin takes two 8-byte scratch pointers after them."""
    tensor_descriptors: Annotated[tuple[DescriptorMeta, ...], Field(max_length=64)]
    line: Line
    """Line of the kernel's first decorator or `def`, None when unknown."""

    @property
    def title(self) -> str:
        """The name for people; `name` is the symbol in the cubin."""
        return shown(self.name) if self.language == "cuda" else self.name


# -- steps -----------------------------------------------------------------------------------------


class AtenStep(Part):
    """One library call. `outputs` are the tensors it returns, in order; those in a new storage create it."""

    kind: Literal["aten"]
    op: Annotated[str, Field(pattern=r"^aten::[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,60})?$")]
    role: Literal["alloc", "fill", "move", "compute", "random"]
    args: Annotated[tuple[Arg, ...], Field(max_length=64)]
    kwargs: Annotated[dict[Name, Arg], Field(max_length=64)]
    outputs: Annotated[tuple[Id, ...], Field(max_length=4096)]
    mutates: Annotated[tuple[Id, ...], Field(max_length=4096)]
    flags: Annotated[int, Field(ge=0, lt=64)]
    """Index into Plan.flags."""
    generator: Annotated[int, Field(ge=0, lt=4096)] | None = None
    """Index into Program.generators of a step that draws random numbers."""
    line: Line


class Alternative(Part):
    """One way to launch: an autotune configuration. `before` is what its pre_hook did."""

    kernel: Sha
    """Key into Plan.kernels."""
    grid: Annotated[tuple[Dim, Dim, Dim], Field()]
    """Programs; the launch has grid[0] x num_ctas blocks in x."""
    args: Annotated[tuple[LaunchArg, ...], Field(max_length=1024)]
    config: Annotated[str, Field(max_length=500)]
    before: Annotated[tuple[AtenStep, ...], Field(max_length=64)]


class LaunchStep(Part):
    """One launch of a custom kernel; `alternatives[0]` is the first choice."""

    kind: Literal["launch"]
    alternatives: Annotated[tuple[Alternative, ...], Field(min_length=1, max_length=64)]
    line: Line
    autotuned: bool
    reset_to_zero: Annotated[tuple[Name, ...], Field(max_length=64)]
    """Kernel arguments that the autotuner zeroes before each trial. This and the next matter where one launch is tried
    again and again; the judge's race repeats whole calls, which bring the content of their memory themselves."""
    restore_value: Annotated[tuple[Name, ...], Field(max_length=64)]
    """Kernel arguments whose content the autotuner restores after each trial."""

    @property
    def kernel(self) -> str:
        return self.alternatives[0].kernel

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.alternatives[0].grid

    @property
    def args(self) -> tuple[LaunchArg, ...]:
        return self.alternatives[0].args


Step: TypeAlias = Annotated[AtenStep | LaunchStep, Field(discriminator="kind")]


# -- programs --------------------------------------------------------------------------------------


class Storage(Part):
    """Memory. Origins: `input` and `parameter` are bound by the caller, `constant` is in the plan, `setup` is
    made by set-up steps, `scratch` needs memory but no content, `forward` is made by a step of the call,
    `earlier_input` is an input of a call before the counted one (no honest plan needs it)."""

    bytes: Size
    device: Literal["cuda", "cpu"]
    origin: Literal["input", "parameter", "constant", "setup", "scratch", "forward", "earlier_input"]


class Value(Part):
    """A strided view of a storage; shape, stride and offset in elements."""

    storage: Id
    dtype: DType
    shape: Dims
    stride: Dims
    offset: Dim


class Parameter(Part):
    """A parameter or buffer where the constructor left it. Its state-dict value is loaded after `ready`
    set-up steps."""

    value: Id
    buffer: bool
    ready: Annotated[int, Field(ge=0, lt=1 << 20)]
    fixed: bool = False
    """The file reads its value on the host: what is loaded must equal what the set-up steps before `ready` make."""


class Generator(Part):
    """A stream of random numbers, drawn in the order of the steps that name it.

    One with a seed was seeded by the candidate. One without is the device's default stream as the caller seeded it
    before the constructor.
    """

    device: Literal["cuda", "cpu"]
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)] | None
    each_call: bool = False
    """`forward` itself seeds it: every call starts it anew. Else it goes on from call to call."""


class Constant(Part):
    storage: Id
    data: Annotated[str, Field(max_length=MAX_CONSTANT_BASE64, pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
    """Base64 of the storage's bytes."""


class Program(Part):
    """What one workload does: set-up once, forward on every call."""

    workload: Name
    inputs: Annotated[tuple[Id, ...], Field(max_length=4096)]
    """Values of the input tensors in leaf order."""
    parameters: Annotated[dict[Name, Parameter], Field(max_length=20_000)]
    setup: Annotated[tuple[Step, ...], Field(max_length=MAX_PROGRAM_STEPS)]
    forward: Annotated[tuple[Step, ...], Field(max_length=MAX_PROGRAM_STEPS)]
    output: Arg
    """Tree of values and plain data that forward returns."""
    mutated: Annotated[dict[Name, Id], Field(max_length=20_000)]
    """Parameters and buffers that forward writes, with their storage when it starts."""
    mutated_inputs: Annotated[tuple[Id, ...], Field(max_length=4096)]
    """Positions in `inputs` that forward writes."""
    restore: Annotated[tuple[Id, ...], Field(max_length=20_000)]
    """Storages that forward both needs at its start and writes: restored before every run."""
    storages: Annotated[tuple[Storage, ...], Field(max_length=100_000)]
    values: Annotated[tuple[Value, ...], Field(max_length=200_000)]
    constants: Annotated[tuple[Constant, ...], Field(max_length=4096)]
    generators: Annotated[tuple[Generator, ...], Field(max_length=4096)] = ()

    def launches(self) -> tuple[LaunchStep, ...]:
        """Custom launches of forward, in order."""
        return tuple(s for s in self.forward if isinstance(s, LaunchStep))

    def library(self) -> tuple[AtenStep, ...]:
        """aten steps of forward, in order."""
        return tuple(s for s in self.forward if isinstance(s, AtenStep))

    def output_values(self) -> tuple[int, ...]:
        """Values of the output tensors, depth first."""
        return tuple(values_in(self.output))


Attention = Literal["math", "flash", "efficient", "cudnn", "overrideable"]


class Flags(Part):
    """torch settings under which an aten step ran. Autocast is not among them: its casts are steps."""

    allow_tf32: bool
    """cuBLAS; `cudnn_allow_tf32` is for convolutions, `rnn_allow_tf32` for cuDNN's recurrent layers."""
    cudnn_allow_tf32: bool
    rnn_allow_tf32: bool
    matmul_precision: Literal["highest", "high", "medium"]
    fp16_reduction: bool
    """Whether cuBLAS may reduce fp16 products in fp16 (`allow_fp16_reduced_precision_reduction`)."""
    bf16_reduction: bool
    fp16_accumulation: bool
    deterministic: bool
    cudnn_enabled: bool
    cudnn_benchmark: bool
    cudnn_deterministic: bool
    attention: Annotated[tuple[Attention, ...], Field(max_length=5)]
    """Enabled back ends of scaled_dot_product_attention."""
    attention_order: Annotated[tuple[Attention, ...], Field(max_length=5)] | None
    """Their order where the candidate set one (`sdpa_kernel(..., set_priority=True)`), else None: the build's own."""
    math_attention_reduction: bool
    """`allow_fp16_bf16_reduction_math_sdp`."""


class Finding(Part):
    """A fact that the recorder noted and that steps cannot show."""

    severity: Literal["error", "warning", "advice"]
    code: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")]
    message: Annotated[str, Field(max_length=4000)]
    line: Annotated[int, Field(ge=0, lt=1 << 31)] | None
    column: Annotated[int, Field(ge=0, lt=1 << 31)] | None
    excerpt: Annotated[str, Field(max_length=2000)]
    count: Annotated[int, Field(ge=1, lt=1 << 31)]


class Plan(Part):
    """All programs of one file for one target, with the kernels they launch."""

    format: Literal[1]
    target: Name
    """The architecture of the cubins, for example `sm_90a`."""
    device: Name | None = None
    """The device that the file was shown, for example `h200`; None for the architecture's default."""
    versions: Annotated[dict[Name, Name], Field(max_length=16)]
    kernels: Annotated[dict[Sha, KernelImage], Field(max_length=2048)]
    flags: Annotated[tuple[Flags, ...], Field(max_length=64)]
    programs: Annotated[tuple[Program, ...], Field(min_length=1, max_length=64)]
    findings: Annotated[tuple[Finding, ...], Field(max_length=128)]

    def program(self, workload: str) -> Program:
        """The program of a workload; KeyError if there is none."""
        for program in self.programs:
            if program.workload == workload:
                return program
        raise KeyError(workload)
