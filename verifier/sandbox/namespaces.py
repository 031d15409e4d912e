"""What the warm process sets up around itself before the first job: user, PID, network and mount namespaces.

Each function tries one layer. Where the kernel refuses it, a sentence goes to `gaps` and the rest goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from verifier.sandbox import confine, kernel, view
from verifier.sandbox.access import Access

UIDS_PER_SERVER = 1000
_FIRST_UID, _SERVERS = 0x40000000, 1 << 20


def own_user(layers: frozenset[str]) -> bool:
    """An ordinary user gets capabilities over namespaces from a user namespace; root has them."""
    if "user" not in layers or (os.geteuid() == 0 and _works(_leave_ipc)):
        return False
    if not _works(confine.enter_user_namespace):
        return False
    confine.enter_user_namespace()
    return True


def _leave_ipc() -> None:
    kernel.unshare(kernel.CLONE_NEWIPC)


def _works(action: Callable[[], None]) -> bool:
    """Whether `action` succeeds in a forked child. In this one, half a success would stay."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def own_pids(layers: frozenset[str], gaps: list[str]) -> bool:
    try:
        if "pid" not in layers:
            raise OSError(0, "not asked for")
        kernel.unshare(kernel.CLONE_NEWPID)
    except OSError as error:
        gaps.append(f"No PID namespace ({error.strerror}): a job sees the numbers of other processes.")
        return False
    return True


def own_network(layers: frozenset[str], gaps: list[str]) -> None:
    try:
        if "net" not in layers:
            raise OSError(0, "not asked for")
        kernel.unshare(kernel.CLONE_NEWNET)
        kernel.unshare(kernel.CLONE_NEWIPC)
    except OSError as error:
        gaps.append(f"No network namespace ({error.strerror}): only the system call filter bars the network.")


def own_mounts(layers: frozenset[str], granted: Access, root: Path, gaps: list[str]) -> Path | None:
    try:
        if "mount" not in layers:
            raise OSError(0, "not asked for")
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", "none", kernel.MS_REC | kernel.MS_PRIVATE)
        view.build(root, granted)
    except OSError as error:
        gaps.append(
            f"No mount namespace ({error.strerror}): a job can tell which files exist, "
            "and its work folder has a limit for each file only."
        )
        return None
    return root


def own_proc() -> bool:
    """Mount a `/proc` of this process's PID namespace; refused where a container covers parts of `/proc`."""
    try:
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    except OSError:
        return False
    return True


def proc_is_ours() -> bool:
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def others_may_enter(granted: Access) -> bool:
    """Whether every folder on the way to the granted paths is open to other users."""
    folders = {parent for path in granted.read for parent in path.parents}
    return all(folder.stat().st_mode & 0o001 for folder in folders)


def first_uid() -> int:
    """First of this server's user ids for jobs: unused ones, unique by process id, inside the user map."""
    number = os.getpid() % _SERVERS
    last = max(sum(map(int, line.split()[::2])) for line in Path("/proc/self/uid_map").read_text().splitlines())
    if last > _FIRST_UID + _SERVERS * UIDS_PER_SERVER:
        return _FIRST_UID + number * UIDS_PER_SERVER
    return 20000 + number % 40 * UIDS_PER_SERVER
