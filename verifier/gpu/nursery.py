"""Forks runners from a process that has imported everything and opened no device.

    python -m verifier.gpu.nursery SOCKET DEVICE

Importing torch takes seconds, a fork takes milliseconds, so a lost runner is replaced at once. It starts no thread and
no CUDA, both of which a fork would break. It is the runners' parent, so it ends them by pid without a race, and they
end with it.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress

import torch

from verifier.gpu import runner
from verifier.gpu.protocol import FROM_SUPERVISOR, Channel, Gone, Message

_PATIENCE = 60.0
_END_SECONDS = 5.0


class Nursery:
    """Executes the supervisor's commands: `spawn` and `end`."""

    def __init__(self, channel: Channel, factory: str) -> None:
        self._channel, self._factory = channel, factory
        self._children: set[int] = set()

    def serve(self) -> None:
        """Until the supervisor is gone; then all runners are ended."""
        self._channel.send({"hello": os.getpid()}, seconds=_PATIENCE)
        try:
            while True:
                message = self._channel.receive()
                pid = self._spawn(message) if message.header["do"] == "spawn" else self._end(message.header["pid"])
                self._channel.send({"pid": pid}, seconds=_PATIENCE)
        except Gone:
            for pid in list(self._children):
                self._end(pid)

    def _spawn(self, message: Message) -> int:
        """Forks a runner that owns the socket, the flags and the log that came along."""
        pid = os.fork()
        if pid == 0:
            self._become_runner(*message.fds)
        for fd in message.fds:
            os.close(fd)
        self._children.add(pid)
        return pid

    def _become_runner(self, end: int, flags: int, log: int) -> None:
        try:
            os.setsid()
            self._channel.close()
            os.dup2(log, 2)
            os.close(log)
            runner.run(end, flags, self._factory)
        except BaseException:  # noqa: BLE001 - the child must end here and leave its reason
            traceback.print_exc()
        finally:
            os._exit(1)

    def _end(self, pid: int) -> int:
        """Kills a runner with all that it started, and waits for its end for a while."""
        if pid in self._children:
            for kill in (os.killpg, os.kill):  # it may not have come to lead a group
                with suppress(ProcessLookupError):
                    kill(pid, signal.SIGKILL)
            end = time.monotonic() + _END_SECONDS
            while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < end:
                time.sleep(0.002)
            self._children.discard(pid)
        return pid


def main() -> None:
    end, factory = int(sys.argv[1]), sys.argv[2]
    importlib.import_module(factory.partition(":")[0])
    torch.use_deterministic_algorithms(False)  # imports torch._inductor on its first call
    Nursery(Channel(socket.socket(fileno=end), FROM_SUPERVISOR), factory).serve()
    os._exit(0)


if __name__ == "__main__":
    main()
