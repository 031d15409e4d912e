"""ProgramOptions of cuda.core, and what they are on NVRTC's command line.

A copy of the options that cuda.core 1.2 documents, with its defaults. Options that only write files or time the
compiler are accepted and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from verifier.plan.nvrtc import include_folders
from verifier.target import Target


@dataclass
class ProgramOptions:
    """The fields that change the code; see cuda.core for each. `arch` is None for the device's own."""

    name: str | None = "default_program"
    arch: str | None = None
    relocatable_device_code: bool | None = None
    extensible_whole_program: bool | None = None
    debug: bool | None = None
    lineinfo: bool | None = None
    device_code_optimize: bool | None = None
    ptxas_options: Any = None
    max_register_count: int | None = None
    ftz: bool | None = None
    prec_sqrt: bool | None = None
    prec_div: bool | None = None
    fma: bool | None = None
    use_fast_math: bool | None = None
    extra_device_vectorization: bool | None = None
    link_time_optimization: bool | None = None
    gen_opt_lto: bool | None = None
    define_macro: Any = None
    undefine_macro: Any = None
    include_path: Any = None
    use_bundled_headers: bool | None = None
    pre_include: Any = None
    no_source_include: bool | None = None
    std: str | None = None
    builtin_move_forward: bool | None = None
    builtin_initializer_list: bool | None = None
    disable_warnings: bool | None = None
    restrict: bool | None = None
    device_as_default_execution_space: bool | None = None
    device_int128: bool | None = None
    optimization_info: str | None = None
    no_display_error_number: bool | None = None
    diag_error: Any = None
    diag_suppress: Any = None
    diag_warn: Any = None
    brief_diagnostics: bool | None = None
    time: Any = None
    split_compile: int | None = None
    fdevice_syntax_only: bool | None = None
    minimal: bool | None = None
    no_cache: bool | None = None
    fdevice_time_trace: str | None = None
    device_float128: bool | None = None
    frandom_seed: str | None = None
    ofast_compile: str | None = None
    pch: bool | None = None
    create_pch: str | None = None
    use_pch: str | None = None
    pch_dir: str | None = None
    pch_verbose: bool | None = None
    pch_messages: bool | None = None
    instantiate_templates_in_pch: bool | None = None
    extra_sources: Any = None
    use_libdevice: bool | None = None
    numba_debug: bool | None = None


_SWITCHES = {
    "ftz": "--ftz", "prec_sqrt": "--prec-sqrt", "prec_div": "--prec-div", "fma": "--fmad",
    "builtin_move_forward": "--builtin-move-forward", "builtin_initializer_list": "--builtin-initializer-list",
}  # fmt: skip
_FLAGS = {
    "debug": "--device-debug", "use_fast_math": "--use_fast_math",
    "extra_device_vectorization": "--extra-device-vectorization", "disable_warnings": "--disable-warnings",
    "restrict": "--restrict", "device_as_default_execution_space": "--device-as-default-execution-space",
    "device_int128": "--device-int128", "device_float128": "--device-float128", "minimal": "--minimal",
    "no_source_include": "--no-source-include",
}  # fmt: skip
_LISTS = {
    "ptxas_options": "--ptxas-options=", "undefine_macro": "--undefine-macro=", "include_path": "--include-path=",
    "pre_include": "--pre-include=", "diag_error": "--diag-error=", "diag_suppress": "--diag-suppress=",
    "diag_warn": "--diag-warn=",
}  # fmt: skip
UNSUPPORTED = ("relocatable_device_code", "link_time_optimization", "extra_sources")
"""Options whose result is no cubin that can be launched as it is."""


def command_line(options: ProgramOptions, target: Target) -> list[str]:
    """NVRTC's options. Raises ValueError for an architecture that the target cannot run."""
    made = [f"--gpu-architecture={architecture(options.arch, target)}", f"--std={options.std or 'c++17'}", "-lineinfo"]
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    made += [f"{flag}={str(bool(values[k])).lower()}" for k, flag in _SWITCHES.items() if values[k] is not None]
    made += [flag for k, flag in _FLAGS.items() if values[k]]
    made += [f"{flag}{item}" for k, flag in _LISTS.items() for item in _listed(values[k])]
    made += [f"--define-macro={_macro(m)}" for m in _macros(options.define_macro)]
    if options.max_register_count is not None:
        made.append(f"--maxrregcount={int(options.max_register_count)}")
    return [*made, *header_options()]


def header_options() -> list[str]:
    """Include options for the headers that are installed here."""
    return [f"--include-path={folder}" for folder in include_folders()]


def architecture(wanted: str | None, target: Target) -> str:
    """The architecture to compile for: what was asked, if the target can load it."""
    name = (wanted or f"sm_{target.capability}").replace("compute_", "sm_")
    number = name.removeprefix("sm_")
    same = number.rstrip("af") == str(target.capability)
    if not name.startswith("sm_") or not same:
        raise ValueError(f"arch {wanted!r}: no kernel image for {target.arch} would come of it")
    return name


def _listed(value: Any) -> Sequence[str]:
    if value is None:
        return ()
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def _macros(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, str) for v in value)
    return value if isinstance(value, list | tuple) and not pair else [value]


def _macro(macro: Any) -> str:
    return f"{macro[0]}={macro[1]}" if isinstance(macro, list | tuple) else str(macro)


def passed_through(options: Sequence[str], target: Target) -> list[str]:
    """Options that a CuPy candidate writes as NVRTC's own, with the architecture and the headers added."""
    kept = [o for o in options if not o.lstrip("-").startswith(("arch", "gpu-architecture", "time", "pch"))]
    kept = [o for o in kept if not (o.startswith("-I") and not Path(o[2:]).is_dir())]
    std = [] if any("std=" in o for o in kept) else ["--std=c++17"]
    return [f"--gpu-architecture=sm_{target.capability}", *std, "-lineinfo", *kept, *header_options()]
