"""The warm process: imports heavy modules once, then forks one child for each job.

Started by the client as `python -m verifier.sandbox.server DESCRIPTOR` with a clean environment; DESCRIPTOR
is its end of a control socket. It holds no secrets, stays single-threaded, and never reads an answer. It ends
when the client does (the socket closes, or the client's pidfd reports), and all jobs end with it.

Two processes: the outer one waits, the inner one is process 1 of a PID namespace, so that its end ends the
jobs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from verifier.sandbox import access, confine, job, kernel, namespaces, pages, watch
from verifier.sandbox.confine import Confinement

_WATCH_SECONDS = 0.1
_LEFTOVER_SECONDS = 2.0
_MAX_REQUEST = 1 << 16
_STARTED_THREADS = "The preloaded modules started {} threads: a forked job may meet a lock that no one holds."


@dataclass(slots=True)
class _Running:
    channel: int
    slot: int
    memory_bytes: int
    cpu_seconds: float
    over: str = ""
    """The cap that it was killed for: `memory`, `cpu`, or empty."""
    closing: bool = False


@dataclass(slots=True)
class Server:
    """The loop of the warm process."""

    control: socket.socket
    how: Confinement
    environ: dict[str, str]
    first_uid: int
    client: int | None
    """Pidfd of the client."""
    watching: bool
    """`/proc` numbers processes as this process does, so their memory can be read."""
    mapped: int = 0
    """Address space of this process, bytes: each job starts with it."""
    inherited: int = 0
    """Private memory of this process, bytes: each job shares it until it writes there."""
    next_watch: float = 0.0
    running: dict[int, _Running] = field(default_factory=dict)
    own_pids: int | None = None

    def serve(self) -> None:
        """Serve until the client is gone."""
        if self.how.own_pids:
            self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.mapped = watch.mapped_bytes()
        self.inherited = watch.private_bytes(os.getpid())
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        poll = select.poll()
        watched = [self.control.fileno(), woken, *([] if self.client is None else [self.client])]
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_WATCH_SECONDS * 1000 if self.running else None)}
            if self.client in ready:
                return
            if woken in ready:
                os.read(woken, 4096)
            self._reap(poll)
            self._stop(ready, poll)
            self._watch()
            if self.control.fileno() in ready and not self._accept(poll):
                return

    def _accept(self, poll: select.poll) -> bool:
        """Start the job of one request; False when the client has closed."""
        data, ends, _, _ = socket.recv_fds(self.control, _MAX_REQUEST, 5 + job.MAX_PASSED, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        request, answer, output, ready, channel, *passed = ends
        asked = json.loads(data)
        try:
            self._fork(asked, job.Ends(request, answer, output, ready, tuple(passed)), channel, poll)
        except OSError as error:
            _tell(channel, {"failed": f"the job could not be forked: {error}"})
            os.close(channel)
        for descriptor in (request, answer, output, ready, *passed):
            os.close(descriptor)
        return True

    def _fork(self, asked: dict[str, Any], ends: job.Ends, channel: int, poll: select.poll) -> None:
        taken = {one.slot for one in self.running.values()}
        slot = next((number for number in range(namespaces.UIDS_PER_SERVER) if number not in taken), None)
        if slot is None:
            raise OSError("too many jobs at once")
        if self.own_pids is not None:
            kernel.unshare(kernel.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                job.run(
                    ends,
                    self.how if asked["confined"] else None,
                    self.first_uid + slot,
                    self.environ,
                    self.mapped,
                )
        finally:
            if self.own_pids is not None:
                kernel.enter_namespace(self.own_pids, kernel.CLONE_NEWPID)
        self.running[pid] = _Running(channel, slot, asked["memory_bytes"], asked["cpu_seconds"])
        poll.register(channel, select.POLLIN)

    def _stop(self, ready: set[int], poll: select.poll) -> None:
        """Kill jobs whose client asks for it or is gone."""
        for pid, one in self.running.items():
            if one.channel in ready and not one.closing:
                one.closing = True
                poll.unregister(one.channel)
                _kill(pid)

    def _watch(self) -> None:
        """Kill jobs whose processes together use more memory or CPU time than the job may."""
        if not self.watching or time.monotonic() < self.next_watch:
            return
        for pid, one in self.running.items():
            if one.over:
                continue
            used = watch.used_by_family(pid, self.inherited)
            if used.memory_bytes > one.memory_bytes:
                one.over = "memory"
            elif used.cpu_seconds > one.cpu_seconds:
                one.over = "cpu"
            if one.over:
                _kill(pid)
        self.next_watch = time.monotonic() + _WATCH_SECONDS

    def _reap(self, poll: select.poll) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            one = self.running.pop(pid, None)
            if one is not None:
                self._finish(pid, one, status, usage, poll)

    def _finish(self, pid: int, one: _Running, status: int, usage: resource.struct_rusage, poll: select.poll) -> None:
        if self.own_pids is None:
            _end_leftovers(pid, self.running)
        report = {
            "status": status,
            "peak_bytes": usage.ru_maxrss << 10,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "over": one.over,
        }
        if not one.closing:
            poll.unregister(one.channel)
        _tell(one.channel, report)
        os.close(one.channel)


def _kill(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(pid, signal.SIGKILL)  # not yet reaped, so the number is still its own


def _end_leftovers(group: int, running: Collection[int]) -> None:
    """Kill what an ended job left behind; used where there is no PID namespace to do so.

    This process adopts orphans, so its children that are no jobs are leftovers of this job or of another.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    end = time.monotonic() + _LEFTOVER_SECONDS
    while (orphans := watch.children(os.getpid()) - set(running)) and time.monotonic() < end:
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _tell(channel: int, report: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the client may have given this job up
        os.write(channel, json.dumps(report).encode())


def main(descriptor: int) -> NoReturn:
    """Start as told by the first message on the control socket, report on it, serve."""
    control = socket.socket(fileno=descriptor)
    config = json.loads(control.recv(_MAX_REQUEST))
    client = _pidfd(os.getppid())
    layers = confine.LAYERS - set(config["without"])
    first_uid = namespaces.first_uid()
    gaps: list[str] = []
    own_user = namespaces.own_user(layers)
    own_pids = namespaces.own_pids(layers, gaps)
    _become_inner(Path(config["root"]))
    try:
        server = _warm_up(control, config, layers, gaps, own_user=own_user, own_pids=own_pids)
    except BaseException as error:  # noqa: BLE001  a preloaded module may raise anything; the client is told
        _tell(control.fileno(), {"error": job.describe(error)})
        os._exit(1)
    server.client, server.first_uid = client, first_uid
    _tell(control.fileno(), {"gaps": gaps, "private_folder": server.how.root is not None})
    server.serve()
    os._exit(0)


def _warm_up(
    control: socket.socket,
    config: dict[str, Any],
    layers: frozenset[str],
    gaps: list[str],
    *,
    own_user: bool,
    own_pids: bool,
) -> Server:
    paths = [Path(path) for path in config["paths"]]
    granted = access.for_jobs(paths, builds=config["builds"], device=config["device"])
    root = namespaces.own_mounts(layers, granted, Path(config["root"]), gaps)
    own_proc = root is not None and own_pids and namespaces.own_proc()
    watching = namespaces.proc_is_ours()
    if not watching:
        gaps.append("No /proc of its own: a job's processes are not limited together, only each.")
    namespaces.own_network(layers, gaps)
    for module in config["preload"]:
        importlib.import_module(module)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        gaps.append(_STARTED_THREADS.format(threads - 1))
    gc.collect()
    gc.freeze()
    pages.gather()
    if os.geteuid() == 0 and root is None and not namespaces.others_may_enter(granted):
        layers -= {"user"}
    how = Confinement(confine.rules(granted), root, own_pids, own_proc, own_user, layers, config["builds"])
    return Server(control, how, config["environ"], 0, None, watching)


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # the control socket's end tells of the client's


def _become_inner(root: Path) -> None:
    """Fork; the child goes on. The parent waits for it, removes the empty folder `root` and ends with it."""
    pid = os.fork()
    if pid:
        kernel.close_all_but({0, 1, 2})
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):
            root.rmdir()
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
