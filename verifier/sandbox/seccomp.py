"""The system call filter: classic BPF for x86-64, built here, installed for good.

Calls that reach outside the job, widen its rights or open rarely tested parts of the kernel fail with EPERM.
Calls newer than `_NEWEST_KNOWN` fail with ENOSYS unless listed. The 32-bit entry ends the process and the x32
entry fails. Changing modes and times is answered as done and not done: Landlock does not govern it, and
libraries that copy files expect it to work.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from collections.abc import Iterable

from verifier.sandbox import kernel

_SECCOMP, _SET_MODE_FILTER = 317, 1
_ARCH_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _AS_IF_DONE = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS, _ERRNO
_CLONE, _PRCTL, _IOCTL = 56, 157, 16
_NEW_NAMESPACES = 0x7E020000
_TIOCSTI = 0x5412
_NEWEST_KNOWN = 334

_SOCKETS = (*range(41, 56), 288, 299, 307)
_SYSTEM_V_AND_MQUEUE = (29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 220, *range(240, 246))
_OTHER_PROCESSES = (101, 310, 311, 312, 256, 279)  # ptrace, process_vm_*, kcmp, move_pages, migrate_pages
_MOUNTS_AND_ROOTS = (155, 161, 165, 166, 272, 308)  # pivot_root, chroot, mount, umount2, unshare, setns
_KERNEL_SURFACE = (
    321,
    298,
    248,
    249,
    250,
    323,
    300,
    301,
    253,
    254,
    255,
    294,
    103,
    135,
    154,
    134,
    156,
    139,
    212,
)
_HANDLES_AND_MEMFD = (303, 304, 319, 322)  # name_to_handle_at, open_by_handle_at, memfd_create, execveat
_ADMINISTRATION = (
    *(175, 176, 313, 246, 320, 169, 167, 168, 163, 164, 159, 227, 305, 170, 171, 172, 173, 179, 180, 153),
    *(141, 142, 144, 251, 314, 133, 259),  # priorities and schedulers, mknod
)
_IDENTITY = (
    105,
    106,
    113,
    114,
    116,
    117,
    119,
    122,
    123,
    126,
    109,
    112,
    317,
)  # set*id, capset, setpgid, setsid
_OWNERS_AND_ATTRIBUTES = (92, 93, 94, 260, 188, 189, 190, 197, 198, 199)
_MODES_AND_TIMES = (90, 91, 268, 452, 132, 235, 261, 280)
_NEW_BUT_ALLOWED = (334, 436, 437, 439, 441, 449, 453, 454, 455, 456, 462)
_DENIED_PRCTL = (1, 4, 22, 35, 36, 0x59616D61)  # death signal, dumpable, seccomp, memory map, reaper, ptracer
_SIGNALS_BY_PROCESS = (62, 234)  # kill, tgkill
_SIGNALS_OTHERWISE = (200, 129, 297)  # tkill, rt_sigqueueinfo, rt_tgsigqueueinfo
_LIMITS_OF_OTHERS = (302, 203)  # prlimit64, sched_setaffinity

DENIED = tuple(
    sorted(
        {
            *(*_SOCKETS, *_SYSTEM_V_AND_MQUEUE, *_OTHER_PROCESSES, *_MOUNTS_AND_ROOTS, *_KERNEL_SURFACE),
            *(*_HANDLES_AND_MEMFD, *_ADMINISTRATION, *_IDENTITY, *_OWNERS_AND_ATTRIBUTES),
        }
    )
)

_FOR_BUILDS = frozenset({*range(41, 56), 288, 109, 112})
"""Unix sockets, without which CUDA does not start, and process groups, which builds use. In a network namespace and a
view of its own a job finds no socket to connect to.
"""
_SOCKET_MAKERS, _AF_UNIX = (41, 53), 1

_Instruction = tuple[int, int, int, int]


@functools.cache
def program(own_pid: int | None, *, builds: bool = False) -> bytes:
    """The filter as BPF bytes.

    `own_pid` is given where the job shares a PID namespace: then signals and limits reach itself only. `builds`: the
    job builds native code or uses a GPU, see `_FOR_BUILDS`.
    """
    denied = [number for number in DENIED if not (builds and number in _FOR_BUILDS)]
    code: list[_Instruction] = [
        *[(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _KILL_PROCESS)],
        *[(_LOAD, 0, 0, 0), (_GREATER_EQUAL, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ENOSYS)],
        *_answer(_NEW_BUT_ALLOWED, _ALLOW),
        *_answer(_MODES_AND_TIMES, _AS_IF_DONE),
        *[(_GREATER_EQUAL, 0, 1, _NEWEST_KNOWN), (_RETURN, 0, 0, _ENOSYS)],
        *_answer(denied, _EPERM),
        *(step for number in _SOCKET_MAKERS if builds for step in _only_unix(number)),
        *_argument(_CLONE, 0, [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _EPERM)]),
        *_argument(_PRCTL, 0, _answer(_DENIED_PRCTL, _EPERM)),
        *_argument(_IOCTL, 1, _answer((_TIOCSTI,), _EPERM)),
    ]
    if own_pid is not None:
        code += _answer(_SIGNALS_OTHERWISE, _EPERM)
        for number in _SIGNALS_BY_PROCESS:
            code += _argument(number, 0, [*_answer((own_pid,), _ALLOW), (_RETURN, 0, 0, _EPERM)])
        for number in _LIMITS_OF_OTHERS:
            code += _argument(number, 0, [*_answer((0, own_pid), _ALLOW), (_RETURN, 0, 0, _EPERM)])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install(own_pid: int | None, *, builds: bool = False) -> None:
    """Install the filter for this thread and all that it starts. Needs no_new_privs; raises OSError."""
    code = program(own_pid, builds=builds)
    memory = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(memory))
    kernel.syscall(_SECCOMP, _SET_MODE_FILTER, 0, header)


def _answer(values: Iterable[int], action: int) -> list[_Instruction]:
    """Return `action` when the loaded word is one of `values`, else fall through."""
    return [step for value in values for step in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, action))]


def _only_unix(number: int) -> list[_Instruction]:
    """For call `number`: EPERM unless its first argument is AF_UNIX."""
    return _argument(number, 0, [*_answer((_AF_UNIX,), _ALLOW), (_RETURN, 0, 0, _EPERM)])


def _argument(number: int, index: int, checks: list[_Instruction]) -> list[_Instruction]:
    """For call `number` load the low word of argument `index` and run `checks`, which may fall through."""
    body = [(_LOAD, 0, 0, 16 + 8 * index), *checks, (_LOAD, 0, 0, 0)]
    return [(_EQUAL, 0, len(body), number), *body]
