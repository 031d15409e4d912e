"""What this machine gives the judge. Each fact is probed, none is assumed.

`missing` means that nothing can be judged here.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from verifier.verdict import Record

if TYPE_CHECKING:
    from verifier.gpu.nvml import Gpu


class Fact(Record):
    name: str
    state: Literal["ok", "limited", "missing"]
    text: str


def examine() -> list[Fact]:
    """All facts, the basic ones first. Takes a second or two: it imports Triton and starts a confined worker."""
    return [
        _python(),
        *(_package(name) for name in ("torch", "triton", "langgraph", "openai", "numpy")),
        _assembler(),
        *_gpus(),
        *_tools(),
        *_builds(),
        _memory(),
        _disk(),
        *_isolation(),
        *_not_protected(),
    ]


def _python() -> Fact:
    fits = sys.version_info >= (3, 11) and platform.machine() == "x86_64" and sys.platform == "linux"
    text = (
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, kernel {platform.release()}"
    )
    return Fact(name="platform", state="ok" if fits else "missing", text=text)


def _package(name: str) -> Fact:
    try:
        return Fact(name=name, state="ok", text=version(name))
    except PackageNotFoundError:
        return Fact(name=name, state="missing", text="not installed: run `make install`")


def _assembler() -> Fact:
    from triton import knobs

    tools = ("ptxas", "ptxas_blackwell", "cuobjdump", "nvdisasm")
    missing = [tool for tool in tools if not Path(getattr(knobs.nvidia, tool).path).exists()]
    if missing:
        return Fact(name="assembler", state="missing", text=f"Triton's wheel lacks {', '.join(missing)}")
    text = (
        f"ptxas {knobs.nvidia.ptxas.version} for sm_80 and sm_90a, {knobs.nvidia.ptxas_blackwell.version} for sm_100, "
        "from Triton's wheel"
    )
    return Fact(name="assembler", state="ok", text=text)


def _gpus() -> list[Fact]:
    from verifier.gpu.found import visible_gpus
    from verifier.gpu.nvml import describe

    found = visible_gpus()
    if not found:
        text = "none: correctness is the interpreter's and every time is an estimate; --target auto is h200"
        return [Fact(name="gpu", state="limited", text=text)]
    return [gpu_fact(device, describe(device)) for device in found]


def gpu_fact(device: str, gpu: Gpu | None) -> Fact:
    """One GPU and the target that fits it."""
    from verifier.gpu.found import nearest

    if gpu is None:
        text = (
            "the driver does not tell which GPU it is: name it with --target; correctness and time are measured on it"
        )
        return Fact(name=f"gpu {device}", state="limited", text=text)
    near = nearest(gpu)
    if near is None:
        return Fact(
            name=f"gpu {device}", state="limited", text=f"{gpu}: no target fits it, so nothing is measured on it"
        )
    like = "" if near.device_name == gpu.name else f", the closest to it (that of {near.device_name})"
    text = f"{gpu}, {gpu.memory / 2**30:.0f} GiB: --target auto is {near.name}{like}; correctness and time are measured"
    return Fact(name=f"gpu {device}", state="ok", text=text)


def _tools() -> list[Fact]:
    """Of the closer look at a new best. Whether counters may be read is known when they are."""
    from verifier.gpu.found import visible_gpus
    from verifier.gpu.replay_folder import find_tool

    facts = []
    for name, use in (("ncu", "hardware counters"), ("compute-sanitizer", "accesses outside of buffers, races")):
        tool = find_tool(name)
        if tool is not None:
            facts.append(Fact(name=name, state="ok", text=f"{tool}: {use} of a new best"))
        elif visible_gpus():
            facts.append(Fact(name=name, state="limited", text=f"not installed: a new best is examined without {use}"))
    return facts


def _builds() -> list[Fact]:
    """What C++ extensions of live candidates are built with."""
    from verifier.gpu.found import visible_gpus
    from verifier.gpu.replay_folder import find_tool

    missing = [name for name in ("c++", "ninja", "nvcc") if find_tool(name) is None]
    if not visible_gpus():
        return []
    if missing:
        text = f"{', '.join(missing)} not installed: files that build C++ extensions end as compile errors"
        return [Fact(name="extensions", state="limited", text=text)]
    return [Fact(name="extensions", state="ok", text="files that build C++ extensions run live, by their own process")]


def _memory() -> Fact:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Fact(name="memory", state="ok" if gib >= 4 else "limited", text=f"{gib:.0f} GiB, {os.cpu_count()} cores")


def _disk() -> Fact:
    free = shutil.disk_usage(".").free / 2**30
    return Fact(name="disk", state="ok" if free >= 1 else "limited", text=f"{free:.0f} GiB free here")


def _isolation() -> list[Fact]:
    from verifier.sandbox.zygote import isolation_gaps

    gaps = isolation_gaps()
    if not gaps:
        return [Fact(name="isolation", state="ok", text="every layer of the sandbox is available")]
    return [Fact(name="isolation", state="limited", text=gap) for gap in gaps]


def _not_protected() -> list[Fact]:
    """The lists in the docstrings of the sandbox and of a live candidate's process, which is where they are kept."""
    from verifier.gpu import contestant
    from verifier.sandbox import confine

    lists = [
        (module.__doc__ or "").partition("What this does NOT protect against")[2] for module in (confine, contestant)
    ]
    items = [" ".join(item.split()) for listed in lists for item in listed.split("\n- ")[1:]]
    return [Fact(name="not protected", state="limited", text=item) for item in items]
