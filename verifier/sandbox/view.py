"""A root folder that holds only what jobs may see, made of read-only bind mounts (bubblewrap's method).

The warm process builds it once in its own mount namespace. Each confined job enters it in a mount namespace
of its own, with a work folder in memory and a `/proc` of its own. Needs CAP_SYS_ADMIN over the mount
namespace.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from verifier.sandbox import access, kernel
from verifier.sandbox.access import Access

WORK_FOLDER = Path("/job")
_PRIVATE = kernel.MS_NOSUID | kernel.MS_NODEV
_MAX_FILES = 1 << 16


def build(root: Path, granted: Access) -> None:
    """Mount the view on the empty folder `root`. Raises OSError where mounts are refused."""
    kernel.mount("view", root, "tmpfs", _PRIVATE, "size=16m,mode=755")
    for path in (*granted.read, *_outside(granted)):
        _bind(root, path)
    for path in granted.listing:
        _inside(root, path).mkdir(parents=True, exist_ok=True)
    for folder in (WORK_FOLDER, Path("/proc")):
        _inside(root, folder).mkdir()
    _make_links(root)
    for device in (*granted.devices, *granted.nodes):
        _mount_point(root, device)
    kernel.make_read_only(root)
    for device in (*granted.devices, *granted.nodes):
        _bind(root, device)


def enter(root: Path, folder_bytes: int, owner: int, *, own_proc: bool) -> None:
    """Give this process a mount namespace whose root is the view, and enter the empty work folder.

    `owner` is the user id that the work folder belongs to. `own_proc` wants a `/proc` of this process's PID
    namespace.
    """
    kernel.unshare(kernel.CLONE_NEWNS)
    options = f"size={folder_bytes},nr_inodes={_MAX_FILES},mode=700,uid={owner},gid={owner}"
    kernel.mount("job", _inside(root, WORK_FOLDER), "tmpfs", _PRIVATE, options)
    if own_proc:
        kernel.mount("proc", _inside(root, Path("/proc")), "proc", _PRIVATE | kernel.MS_NOEXEC)
    kernel.change_root(root)
    os.chdir(WORK_FOLDER)


def _outside(granted: Access) -> list[Path]:
    return [path for path in granted.run if not any(path.is_relative_to(folder) for folder in granted.read)]


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _mount_point(root: Path, path: Path) -> Path:
    target = _inside(root, path)
    if stat.S_ISDIR(path.stat().st_mode):
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    return target


def _bind(root: Path, path: Path) -> None:
    target = _inside(root, path) if path.is_char_device() else _mount_point(root, path)
    kernel.mount(str(path), target, "none", kernel.MS_BIND | kernel.MS_REC)


def _make_links(root: Path) -> None:
    for path in access.named_paths():
        for link, target in access.links(path):
            inside = _inside(root, link)
            if inside.exists() or inside.is_symlink():
                continue
            with suppress(OSError):  # a folder on the way that is granted, and so as it is
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.symlink_to(target)
