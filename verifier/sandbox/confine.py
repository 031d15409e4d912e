"""Confinement of a forked child: which layers go on, and in which order.

Layers, each left out where the kernel refuses it, with a sentence in the list of gaps:

- `user`   as root a user id of its own for each job, all capabilities dropped; else a user namespace
- `pid`    a PID namespace: the job sees and signals only itself, and its end ends all that it started
- `net`    a network namespace without an interface, and an IPC namespace, both of the warm process
- `mount`  a root of read-only bind mounts, a private work folder in memory, a `/proc` of its own
- `landlock`  files: read the interpreter and its packages, write the work folder, execute Triton's tools
- `seccomp`   no sockets, tracing, mounts, namespaces, handles, memory files; see `seccomp.py`
- always: resource limits, no new privileges, not dumpable, cleared environment, no inherited descriptors

What this does NOT protect against:

- A hole in the kernel. Jobs share it; a virtual machine is the stronger wall.
- Native code. A job may map and run machine code (ctypes, its own files, the system's loader); the layers
  hold it, not its language.
- A forged answer. The candidate shares its process with the job's function, so it can write any answer. What
  comes back is a claim about the candidate, to be checked, never believed.
- Side channels: timing, caches, load, the host name, kernel version and CPU type. Names of readable files.
- Slowing the machine down: a job may use all that its limits allow, on any number of cores. The memory of
  one process is capped at once, the sum over processes only at intervals (0.1 s); there is no memory cgroup.
- Programs that outlive the job where there is no PID namespace and the warm process is killed just then.
"""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from verifier.sandbox import kernel, landlock, seccomp, view
from verifier.sandbox.access import Access
from verifier.sandbox.landlock import Rule
from verifier.sandbox.limits import Limits

LAYERS = frozenset({"user", "pid", "net", "mount", "landlock", "seccomp"})
_PROC_FILES = ("cpuinfo", "meminfo", "stat", "sys/vm/overcommit_memory")
_PROC_OF_DRIVER = ("driver", "devices", "sys/vm/mmap_min_addr")
"""What CUDA reads when it starts."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """How the warm process confines its jobs; fixed when it starts."""

    rules: tuple[Rule, ...]
    """What Landlock grants beside the work folder and the job's own `/proc` entry."""
    root: Path | None
    """The view, None without the `mount` layer."""
    own_pids: bool
    """Each job is process 1 of a PID namespace."""
    own_proc: bool
    """A `/proc` of its own can be mounted for each job."""
    own_user: bool
    """The warm process lives in a user namespace, in which it holds capabilities."""
    layers: frozenset[str] = LAYERS
    builds: bool = False
    """Jobs build native code, and may use a GPU where its nodes are granted."""


def rules(granted: Access) -> tuple[Rule, ...]:
    """The file rules that all jobs share."""
    proc_files = [Path("/proc", name) for name in (*_PROC_FILES, *(_PROC_OF_DRIVER if granted.nodes else ()))]
    by_rights = {
        landlock.READ: (*granted.read, *proc_files),
        landlock.LIST: granted.listing,
        landlock.RUN: granted.run,
        landlock.DEVICE: granted.devices,
        landlock.DEVICE_IOCTL: granted.nodes,
    }
    return tuple(Rule.on(path, rights) for rights, paths in by_rights.items() for path in paths)


def limit(limits: Limits, mapped: int) -> None:
    """Resource limits, for every job. Memory counts on top of the `mapped` bytes that a job starts with."""
    caps = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_seconds + 1,  # of each process; the warm process watches the sum
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.descriptors,
        resource.RLIMIT_MEMLOCK: 1 << 20,
    }
    if not limits.map_freely:
        caps[resource.RLIMIT_AS] = mapped + limits.memory_bytes
    for kind, cap in caps.items():
        _, most = resource.getrlimit(kind)
        value = cap if most == resource.RLIM_INFINITY else min(cap, most)
        resource.setrlimit(kind, (value, value))


def confine(how: Confinement, limits: Limits, folder: Path | None, uid: int) -> tuple[Path, list[str]]:
    """Confine this process for good; returns its work folder, which is the current one, and the gaps.

    `folder` is a private folder made by the client, used when there is no view; `uid` the job's own user id.
    Raises OSError when a layer that this kernel has cannot be put on.
    """
    drop = os.geteuid() == 0 and "user" in how.layers and not how.own_user
    identity = uid if drop else os.geteuid()
    workdir = _enter_folder(how, limits, folder, identity)
    rules = _ruleset(how, workdir) if _wants_landlock(how) else None
    _take_identity(how, identity, limits, drop=drop)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if not how.own_pids:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if rules is not None:
        landlock.enforce(rules)
    gaps = _gaps(how, dropped=drop)
    if kernel.NATIVE and "seccomp" in how.layers:
        try:
            seccomp.install(None if how.own_pids else os.getpid(), builds=how.builds)
        except OSError as error:
            gaps.append(f"No system call filter ({error.strerror}): sockets and signals stay open to a job.")
    return workdir, gaps


def _enter_folder(how: Confinement, limits: Limits, folder: Path | None, identity: int) -> Path:
    if how.root is not None:
        view.enter(how.root, limits.folder_bytes, identity, own_proc=how.own_proc)
        return view.WORK_FOLDER
    if folder is None:
        raise OSError("no work folder was given")
    if os.geteuid() == 0:
        os.chown(folder, identity, identity)
    os.chdir(folder)
    return folder


def _wants_landlock(how: Confinement) -> bool:
    return "landlock" in how.layers and landlock.version() > 0


def _ruleset(how: Confinement, workdir: Path) -> int:
    own_entry = os.path.realpath("/proc/self")
    own = landlock.READ | (landlock.REWRITE if how.builds else 0)  # without naming its threads CUDA does not start
    return landlock.ruleset([*how.rules, Rule(own_entry, own), Rule(str(workdir), landlock.READ | landlock.WRITE)])


def _take_identity(how: Confinement, identity: int, limits: Limits, *, drop: bool) -> None:
    if how.own_user and Path("/proc/self/uid_map").exists():
        enter_user_namespace()  # processes of a user are counted for each namespace
    if how.own_user or drop:  # else the cap would count all processes of the one who started the job
        resource.setrlimit(resource.RLIMIT_NPROC, (limits.processes, limits.processes))
    if drop:
        os.setgroups([])
        os.setresgid(identity, identity, identity)
        os.setresuid(identity, identity, identity)
    kernel.drop_capabilities()


def enter_user_namespace() -> None:
    """Enter a new user namespace with the same user and group id; raises OSError where it is refused."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _gaps(how: Confinement, *, dropped: bool) -> list[str]:
    abi = landlock.version() if "landlock" in how.layers else 0
    found = []
    if os.geteuid() == 0:
        found.append("A job keeps user id 0, without capabilities: the number of its processes is not limited.")
    elif not dropped and not how.own_user:
        found.append("No user namespace: the number of a job's processes is not limited.")
    if abi == 0:
        found.append("No Landlock: a job may execute any program that it can see.")
    elif abi < 3:
        found.append(f"Landlock version {abi}: a job may truncate files that it may not write.")
    if not kernel.NATIVE or "seccomp" not in how.layers:
        found.append("No system call filter for this machine: sockets and signals stay open to a job.")
    return found
