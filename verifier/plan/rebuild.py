"""Makes the machine code of a plan once more, in a process that no candidate ever touched, and compares the bytes.

PTX and cubin of a plan both come from the candidate's own process, which could show innocent PTX to the rules and run
other code. Here a Triton kernel's PTX goes through Triton's own assembler, a kernel of CUDA C++ from its source through
NVRTC. Both are deterministic but for times of files in line tables, which are left out: names of files there come from
the PTX, NVRTC is given names without a folder.

Where no GPU is, results are those of the TTIR (`interpreter/replay_gate.py`), so there the PTX too is made once more,
from the TTIR and the options that the trace names (`lower_job`). A GPU runs the cubin, so there correctness and
measured times rest on that, and the rules for device code on its PTX; of the TTIR only the parameters that are written
are compared. It says what the static profile counts, what launches read and write, and whether a kernel only moves
data: a forged one would buy a better estimate, which a forged plan buys as well, or hide a decoy, which an idle
multiplication hides as well. None of this withstands a hole in Triton's compiler, the assembler or NVRTC.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget, Language
from triton.compiler.compiler import make_backend

from verifier.plan import elf, nvrtc
from verifier.plan import ptx as ptx_reader
from verifier.plan.abi_sizes import SCRATCH
from verifier.plan.cuda_options import header_options
from verifier.plan.schema import KernelImage
from verifier.plan.textutil import clip
from verifier.target import Target, get_target

MAX_THREADS = 4
_OURS = ("arch", "backend_name", "extern_libs", "instrumentation_mode", "ir_override")
"""Options of Triton's compiler that no file may choose: where it takes code from, and what it adds."""
_ASSEMBLER = re.compile(
    r"-v|--verbose|-O[0-4]|--?opt-level(?:=[0-4])?|[0-9]+|--?regAllocOptLevel=\d"
    r"|--?(?:maxrregcount|def-load-cache|def-store-cache|fmad|allow-expensive-optimizations)=\w+"
    r"|-dlcm=\w+|-dscm=\w+|-?-?warn-(?:spills|on-spills|double-usage|lmem-usage|on-local-memory-usage)"
)
"""Words for ptxas that change how well it works, not what it assembles or where it is found."""
_COMPILER = re.compile(
    r"--gpu-architecture=sm_\w+|--?std=c\+\+\d\d|-lineinfo|--generate-line-info|-G|--device-debug"
    r"|--?(?:ftz|prec-sqrt|prec-div|fmad|builtin-move-forward|builtin-initializer-list|split-compile)=\w+"
    r"|--?use_fast_math|--?extra-device-vectorization|--?disable-warnings|-w|--?restrict|--?device-int128"
    r"|-default-device|--?device-as-default-execution-space|--?device-float128|--?minimal|--?no-source-include"
    r"|(?:-D|-U|-I|--(?:define-macro|undefine-macro|include-path|pre-include)=).+|--?maxrregcount=\d+"
    r"|--?diag-(?:error|suppress|warn)=.+|--?optimization-info=\w+|--?no-display-error-number|--?brief-diagnostics=\w+"
    r"|--?dopt(?:=on|=off)?|-Ofc=\w+|--ofast-compile=\w+"
)
_PASSED_ON = re.compile(r"(?:--ptxas-options|-Xptxas)=(.*)")
_IN_TWO = re.compile(
    r"-D|-U|-I|-Xptxas|--(?:ptxas-options|define-macro|undefine-macro|include-path)|--?(?:maxrregcount|std)"
)
"""Options whose value may be a word of its own."""


def note(source: str, name: str, options: Iterable[str], names: Iterable[str]) -> bytes:
    """All that NVRTC is given for one program, but for where its headers are installed, as a plan's blob."""
    headers = set(header_options())
    kept = [option for option in options if option not in headers]
    return json.dumps({"source": source, "name": name, "options": kept, "names": list(names)}).encode()


def rebuild_job(
    payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path
) -> tuple[dict[str, str], dict[str, bytes]]:
    """`payload`: {"target": name, "kernels": {key: KernelImage}}. Value: key to what is wrong, one sentence, for each
    kernel whose machine code is not what its plan says. No blobs.
    """
    target = get_target(str(payload["target"]))
    images = {key: KernelImage.model_validate_json(json.dumps(value)) for key, value in payload["kernels"].items()}
    found: dict[str, str] = {}
    for settings in dict.fromkeys(_settings(image) for image in images.values()):
        group = {key: image for key, image in images.items() if _settings(image) == settings}
        with _knobs(*settings), ThreadPoolExecutor(MAX_THREADS) as pool, contextlib.redirect_stdout(io.StringIO()):
            said = pool.map(lambda image: _problem(image, blobs, target), group.values())
            found |= {key: problem for key, problem in zip(group, said, strict=True) if problem}
    return found, {}


def lower_job(
    payload: Mapping[str, Any], blobs: Mapping[str, bytes], workdir: Path
) -> tuple[dict[str, str], dict[str, bytes]]:
    """`payload`: {"target": name, "kernels": {key: KernelImage}, "options": {key: the compiler's options}}. Value: key
    to what is wrong, one sentence, for each Triton kernel whose PTX is not what its TTIR and options make. No blobs.
    """
    target = get_target(str(payload["target"]))
    found: dict[str, str] = {}
    for key, value in payload["kernels"].items():
        image = KernelImage.model_validate_json(json.dumps(value))
        file = workdir / "kernel.ttir"
        file.write_bytes(blobs[f"{image.ttir}.ttir"])
        try:
            with _knobs(*_settings(image)), contextlib.redirect_stdout(io.StringIO()):
                same = _lowered(file, payload["options"][key], target).encode() == blobs[f"{image.ptx}.ptx"]
        except Exception as failure:  # noqa: BLE001 - the compiler raises what it likes
            found[key] = clip(f"it cannot be made again: {type(failure).__name__}: {failure}", 600)
        else:
            if not same:
                found[key] = "its PTX is not what its TTIR compiles to"
    return found, {}


def _lowered(file: Path, told: Mapping[str, Any], target: Target) -> str:
    """PTX of the TTIR in a file."""
    backend = make_backend(GPUTarget("cuda", target.capability, target.warp_size))
    plain = json.loads(json.dumps(backend.parse_options({}).__dict__, default=vars))
    for name in _OURS:
        if name in plain and told.get(name) != plain[name]:
            raise ValueError(f"the option {name} is another one than here")
    _allow(str(told.get("ptx_options") or "").split(), _ASSEMBLER)
    given = {name: _hashable(value) for name, value in told.items() if name in plain and name not in _OURS}
    options, context = backend.parse_options(given), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = ir.parse_mlir_module(str(file), context)
    module.context = context
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, Language.TRITON)
    metadata = {"target": backend.target, **options.__dict__}
    for kind in ("ttgir", "llir", "ptx"):
        module = stages[kind](module, metadata)
    return str(module)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _settings(image: KernelImage) -> tuple[bool, bool]:
    return image.assembly.line_info, image.assembly.optimized


@contextlib.contextmanager
def _knobs(line_info: bool, optimized: bool) -> Iterator[None]:
    """Triton's settings of the assembler, for this process."""
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope():
        triton.knobs.compilation.disable_line_info = not line_info
        triton.knobs.nvidia.disable_ptxas_opt = not optimized
        yield


def _problem(image: KernelImage, blobs: Mapping[str, bytes], target: Target) -> str:
    make = _compiled if image.language == "cuda" else _assembled
    try:
        cubin, ptx = make(image, blobs, target)
    except Exception as failure:  # noqa: BLE001 - the compilers raise what they like
        return clip(f"it cannot be built again: {type(failure).__name__}: {failure}", 600)
    if ptx != blobs[f"{image.ptx}.ptx"]:
        return "its PTX is not what its source compiles to"
    if not elf.same_code(cubin, blobs[f"{image.cubin}.cubin"]):
        return f"its machine code is not what its {_FROM[image.language]}"
    return "" if image.language == "cuda" else _hidden_store(image, ptx.decode())


def _hidden_store(image: KernelImage, text: str) -> str:
    """A store of the PTX that the TTIR does not tell of, as one sentence. Not looked for where a parameter is made of
    several.
    """
    written = ptx_reader.written(text, image.name)
    if written is None or len(written) != len(image.params) + len(SCRATCH):
        return ""
    for param, stored in zip(image.params, written, strict=False):
        if stored and param.type.startswith("*") and param.access not in ("store", "both"):
            return f"its PTX stores through `{param.name}`, its TTIR does not"
    return ""


_FROM = {"cuda": "source compiles to", "triton": "PTX assembles to"}


def _assembled(image: KernelImage, blobs: Mapping[str, bytes], target: Target) -> tuple[bytes, bytes]:
    """Cubin and PTX of a Triton kernel."""
    words = image.assembly.options.split()
    _allow(words, _ASSEMBLER)
    ptx = blobs[f"{image.ptx}.ptx"]
    backend = make_backend(GPUTarget("cuda", target.capability, target.warp_size))
    told = {"enable_fp_fusion": image.assembly.fp_fusion, "ptx_options": image.assembly.options or None}
    made = backend.make_cubin(ptx.decode(), {}, backend.parse_options(told), target.capability)
    return bytes(made), ptx


def _compiled(image: KernelImage, blobs: Mapping[str, bytes], target: Target) -> tuple[bytes, bytes]:
    """Cubin and PTX of a kernel of CUDA C++."""
    program = json.loads(blobs[f"{image.source}.cu"])
    options, names = ([str(word) for word in program[part]] for part in ("options", "names"))
    words = _joined(options)
    _allow([o for o in words if not _PASSED_ON.fullmatch(o)], _COMPILER)
    _allow([word for o in words if (m := _PASSED_ON.fullmatch(o)) for word in re.split("[, ]", m[1])], _ASSEMBLER)
    made = nvrtc.load().compile(
        str(program["source"]), name=str(program["name"]), options=[*options, *header_options()], names=names
    )
    return made.cubin, made.ptx.encode()


def _joined(options: Sequence[str]) -> list[str]:
    """Options with their values in one word."""
    words: list[str] = []
    for option in options:
        if words and _IN_TWO.fullmatch(words[-1]):
            words[-1] += option if len(words[-1]) == 2 else f"={option}"
        else:
            words.append(option)
    return words


def _allow(words: Iterable[str], known: re.Pattern[str]) -> None:
    for word in words:
        if not known.fullmatch(word):
            raise ValueError(f"the option `{word}` is not one that a candidate may give")
