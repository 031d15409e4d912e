"""What a confined job may see: the interpreter, its packages, system libraries, the tools of Triton's wheel.

Whole prefixes are never granted: a prefix may be `/usr`, and an import root may hold a user's secrets beside
the packages.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]

_SYSTEM = (
    *("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64"),
    *("/usr/local/cuda/include", "/usr/local/cuda/lib64"),  # headers and NVRTC of a toolkit
    *("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
)
_TOOLCHAIN = (
    *("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/libexec", "/usr/lib/gcc"),
    *("/usr/local/cuda", "/usr/include", "/etc/alternatives"),
)
"""Compilers that Triton's launcher and C++ extensions need."""
_DRIVER = ("/usr/local/nvidia", "/sys/bus/pci", "/sys/devices", "/sys/module", "/sys/class")
_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia[0-9]*")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_TRITON_TOOLS = ("ptxas", "ptxas-blackwell", "cuobjdump", "nvdisasm")
_MOST_LINKS = 40
"""As many as the kernel follows."""
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")


@dataclass(frozen=True, slots=True)
class Access:
    """Paths by right. All exist; none is a symbolic link."""

    read: tuple[Path, ...]
    """Files, and folders with all below."""
    listing: tuple[Path, ...]
    """Folders whose names may be listed, for the import system; their files stay closed."""
    run: tuple[Path, ...]
    """Programs that may be executed."""
    devices: tuple[Path, ...]
    nodes: tuple[Path, ...] = ()
    """Devices that take ioctl as well: those of a GPU."""


def for_jobs(paths: Iterable[Path], *, builds: bool = False, device: bool = False) -> Access:
    """Access for jobs of this interpreter; `paths` are folders that the caller adds for reading. With `builds` jobs may
    build native code, with `device` use the machine's GPUs.
    """
    tools = _triton_tools()
    granted = [*_python_folders(), *_project_packages(), *map(Path, _SYSTEM), *_library_path(), *paths]
    if builds:
        tools += [*map(Path, _TOOLCHAIN), *_scripts(), *_compilers()]
        granted += [*map(Path, _TOOLCHAIN), *_scripts(), *_headers(), *_compilers()]
    if device:
        granted += map(Path, _DRIVER)
    return Access(
        read=_outermost(granted),
        listing=_existing([PROJECT_ROOT]),
        run=_existing([*tools, _LOADER] if tools else []),
        devices=_existing(map(Path, _DEVICES)),
        nodes=_existing(sorted(found for name in _NODES for found in Path("/dev").glob(name))) if device else (),
    )


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """Symbolic links met while walking `path` from the root, as (link, target); links to links one by one."""
    current = Path("/")
    for part in path.parts[1:]:
        current = current / part
        for _ in range(_MOST_LINKS):
            if not current.is_symlink():
                break
            target = os.readlink(current)
            yield current, target
            following = current.parent / target
            current = following.parent.resolve() / following.name
        current = Path(os.path.realpath(current))


def named_paths() -> tuple[Path, ...]:
    """Paths under which programs look for granted files and that may run through symbolic links."""
    return (*map(Path, _SYSTEM), *map(Path, _TOOLCHAIN), _LOADER, *map(Path, sys.path), *_library_path())


def _python_folders() -> list[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [Path(sysconfig.get_path(name)) for name in names]
    archives = [Path(entry) for entry in sys.path if entry.endswith(".zip")]
    own_libraries = [] if sys.base_prefix == "/usr" else [Path(sys.base_prefix, "lib")]
    user_site = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return [*installed, *archives, *own_libraries, *user_site]


def _project_packages() -> list[Path]:
    return [folder.parent for folder in PROJECT_ROOT.glob("*/__init__.py")]


def _library_path() -> list[Path]:
    entries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return [Path(entry) for entry in entries if os.path.isabs(entry) and entry != "/"]


def _triton_tools() -> list[Path]:
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0], "backends", "nvidia", "bin")
    return [folder / name for name in _TRITON_TOOLS]


def _scripts() -> list[Path]:
    """Where installed programs lie, for example ninja, in this environment and inside packages."""
    folders = [Path(sysconfig.get_path("scripts")), Path(sysconfig.get_path("purelib"), "ninja")]
    return [folder for folder in folders if folder != Path("/")]


def _compilers() -> list[Path]:
    """Prefixes of compilers and build tools that are installed under /opt."""
    found = (shutil.which(name) for name in ("cc", "c++", "nvcc", "ninja"))
    real = [Path(name).resolve() for name in found if name]
    return [path.parents[1] for path in real if path.is_relative_to("/opt") and len(path.parents) > 3]


def _headers() -> list[Path]:
    """Of this Python, for native code; and what tells an interpreter of its environment."""
    return [Path(sysconfig.get_path("include")), Path(sys.prefix, "pyvenv.cfg")]


def _existing(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(path.resolve() for path in paths if path.exists()))


def _outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Existing paths without those that lie below another."""
    kept: list[Path] = []
    for path in sorted(_existing(paths)):
        if not any(path.is_relative_to(parent) for parent in kept):
            kept.append(path)
    return tuple(kept)
