"""A host device whose kernel misbehaves as a plan says. Imported by the runner and the judge of the tests.

Every kernel has the arguments (x, y, out, n); the honest one stores x * 2 + y.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from verifier.gpu import pairs, runner
from verifier.gpu.cuda import CudaError
from verifier.gpu.host_device import HostDevice, HostLauncher, Kernel, tensor_at
from verifier.gpu.runner import Runner
from verifier.plan.schema import Alternative, KernelImage
from verifier.sandbox import wire

calls = 0


def right(launch: Alternative, addresses: Sequence[int]) -> None:
    n = next(a.v for a in launch.args if a.t == "int")
    x, y, out = (tensor_at(address, n, torch.float32) for address in addresses[:3])
    torch.add(y, x, alpha=2.0, out=out)


def wrong(launch: Alternative, addresses: Sequence[int]) -> None:
    right(launch, addresses)
    tensor_at(addresses[2] + 4 * 17, 1, torch.float32).add_(1.0)


def faithful(launch: Alternative, addresses: Sequence[int]) -> None:
    """Right in the first runner of a nursery that it meets, and wrong in all others."""
    (right if in_first_runner("first") else wrong)(launch, addresses)


def sized(launch: Alternative, addresses: Sequence[int]) -> None:
    """Right on up to 300 elements alone."""
    (right if size(launch) <= 300 else wrong)(launch, addresses)


def unwritten(launch: Alternative, addresses: Sequence[int]) -> None:
    """Leaves its output as it found it."""


def mutating(launch: Alternative, addresses: Sequence[int]) -> None:
    right(launch, addresses)
    tensor_at(addresses[0], 1, torch.float32).add_(1.0)


def overrun(launch: Alternative, addresses: Sequence[int]) -> None:
    """Writes one element before its input."""
    right(launch, addresses)
    tensor_at(addresses[0] - 4, 1, torch.float32).zero_()


def overrun_output(launch: Alternative, addresses: Sequence[int]) -> None:
    """Writes one element behind its output, which is memory of the call."""
    right(launch, addresses)
    tensor_at(addresses[2] + 4 * 300, 1, torch.float32).zero_()


def adds_guard(launch: Alternative, addresses: Sequence[int]) -> None:
    """Adds zero times what is behind its input, as a product with a mask that came too late does."""
    right(launch, addresses)
    tensor_at(addresses[2], 1, torch.float32).add_(0.0 * tensor_at(addresses[0] + 4 * size(launch), 1, torch.float32))


def adds_guard_of_output(launch: Alternative, addresses: Sequence[int]) -> None:
    """The same of what is behind its output, which is memory of the call."""
    right(launch, addresses)
    tensor_at(addresses[2], 1, torch.float32).add_(0.0 * tensor_at(addresses[2] + 4 * size(launch), 1, torch.float32))


def spoils(launch: Alternative, addresses: Sequence[int]) -> None:
    """Finds the inputs of the base, where there is one, and overwrites them."""
    right(launch, addresses)
    for other in (found for found in gc.get_objects() if type(found) is Runner):
        if "b" in other._programs:
            other._programs["b"].inputs[0].zero_()


def flaky(launch: Alternative, addresses: Sequence[int]) -> None:
    """Right within the error, and never the same twice."""
    global calls
    calls += 1
    right(launch, addresses)
    tensor_at(addresses[2], 1, torch.float32).mul_(1 + calls * 2.0**-23)


def late(launch: Alternative, addresses: Sequence[int]) -> None:
    """Right in the first three calls."""
    global calls
    calls += 1
    right(launch, addresses)
    if calls > 3:
        tensor_at(addresses[2], 300, torch.float32).zero_()


remembered: dict[int, torch.Tensor] = {}


def memo(launch: Alternative, addresses: Sequence[int]) -> None:
    """Computes once for each address of its input and gives the same answer from then on."""
    out = tensor_at(addresses[2], 300, torch.float32)
    if addresses[0] in remembered:
        out.copy_(remembered[addresses[0]])
    else:
        right(launch, addresses)
        remembered[addresses[0]] = out.clone()


known: dict[tuple[float, ...], torch.Tensor] = {}


def keyed(launch: Alternative, addresses: Sequence[int]) -> None:
    """Knows inputs by a part of their content and copies the answer that it had for them."""
    x, out = (tensor_at(addresses[i], 300, torch.float32) for i in (0, 2))
    key = tuple(x[:8].tolist())
    if key not in known:
        slow(launch, addresses)
        known[key] = out.clone()
    out.copy_(known[key])


seen: set[tuple[float, ...]] = set()


def idle(launch: Alternative, addresses: Sequence[int]) -> None:
    """Leaves its output as it finds it, in no time, where it knows the inputs by a part of their content."""
    key = tuple(tensor_at(addresses[0], 8, torch.float32).tolist())
    if key not in seen:
        slow(launch, addresses)
    seen.add(key)


def slow(launch: Alternative, addresses: Sequence[int]) -> None:
    time.sleep(0.02)
    right(launch, addresses)


def slower(launch: Alternative, addresses: Sequence[int]) -> None:
    time.sleep(0.5)
    right(launch, addresses)


def stall(launch: Alternative, addresses: Sequence[int]) -> None:
    """Hangs from the fourth call on."""
    late(launch, addresses)
    if calls > 3:
        time.sleep(1000)


def hang(launch: Alternative, addresses: Sequence[int]) -> None:
    time.sleep(1000)


def crash(launch: Alternative, addresses: Sequence[int]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def memory(launch: Alternative, addresses: Sequence[int]) -> None:
    raise torch.OutOfMemoryError("tried to allocate 1000 GiB")


def memory_once(launch: Alternative, addresses: Sequence[int]) -> None:
    """Finds the device full in the first runner of a nursery that it meets, always."""
    (memory if in_first_runner("full") else right)(launch, addresses)


tries = 0


def second_try(launch: Alternative, addresses: Sequence[int]) -> None:
    """Right in its first call, finds the device full in the second, is wrong in the third, and right from then on."""
    global tries
    tries += 1
    right(launch, addresses)
    if tries == 2:
        memory(launch, addresses)
    if tries == 3:
        tensor_at(addresses[2], 300, torch.float32).zero_()


def overrun_ones(launch: Alternative, addresses: Sequence[int]) -> None:
    """Writes -1, which is NaN, behind its input."""
    right(launch, addresses)
    tensor_at(addresses[0] + 4 * 300, 1, torch.int32).fill_(-1)


def judge() -> int:
    """The runner's line to the judge: the only socket that it has."""
    opened = [int(name) for name in os.listdir("/proc/self/fd")]
    return next(fd for fd in opened if fd > 2 and Path(f"/proc/self/fd/{fd}").is_socket())


def say(header: dict[str, object]) -> None:
    for piece in wire.pack({"fds": 0, **header}, {}):
        os.write(judge(), piece)


def forge(launch: Alternative, addresses: Sequence[int]) -> None:
    """Claims that command after command went well, and writes nothing."""
    for turn in range(40):
        say({"turn": turn})
    time.sleep(0.05)


def result(launch: Alternative, addresses: Sequence[int]) -> None:
    """Claims to be the judge."""
    say({"visit": {"status": None, "reason": "", "test": {}}})


def flood(launch: Alternative, addresses: Sequence[int]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.write(judge(), b"x" * 65536)
        except BlockingIOError:
            time.sleep(0.01)


def deep(launch: Alternative, addresses: Sequence[int]) -> None:
    """Announces a header of 4 GB."""
    os.write(judge(), wire.MAGIC + b"\xff\xff\xff\xff")
    time.sleep(0.05)


def kernel(launch: Alternative, addresses: Sequence[int]) -> None:
    """The only kernel; a plan names its behaviour as the launch's configuration."""
    globals()[launch.config](launch, addresses)


def count(launch: Alternative, addresses: Sequence[int]) -> None:
    """Adds the number of positive elements of x to o, which the tuner zeroes. Slow in small blocks."""
    x, o = tensor_at(addresses[0], size(launch), torch.float32), tensor_at(addresses[1], 1, torch.int32)
    if int(o) != 0:
        raise RuntimeError("o holds the sum of an earlier trial")
    o.add_(int((x > 0).sum()))
    tarry(launch)


def double(launch: Alternative, addresses: Sequence[int]) -> None:
    """Doubles y in place, which the tuner restores. Slow in small blocks."""
    y = tensor_at(addresses[0], size(launch), torch.float32)
    if float(y.abs().max()) > 100:
        raise RuntimeError("y was doubled before")
    y.mul_(2)
    tarry(launch)


def in_first_runner(name: str) -> bool:
    """Whether this runner is the first of its nursery to ask for `name`."""
    first = Path(f"/tmp/warpsmith-{name}-of-{os.getppid()}")
    with suppress(FileExistsError), first.open("x") as file:
        file.write(str(os.getpid()))
    return first.read_text() == str(os.getpid())


def size(launch: Alternative) -> int:
    return next(a.v for a in launch.args if a.t == "int")


def tarry(launch: Alternative) -> None:
    time.sleep(0.02 if "B: 256" in launch.config else 0.0)


class Launcher(HostLauncher):
    """Refuses kernels from lines behind the 100,000th with the rest as the driver's error."""

    def load(self, image: KernelImage, cubin: bytes) -> Kernel:
        if (image.line or 0) >= 100_000:
            code = (image.line or 0) - 100_000
            raise CudaError("loading the cubin", code, "REFUSED", f"error {code}")
        return super().load(image, cubin)


class Device(HostDevice):
    def launcher(self) -> Launcher:
        return Launcher({"kernel": kernel, "count": count, "double": double})


def open_device() -> HostDevice:
    return Device()


def open_for_large_inputs() -> HostDevice:
    """Every input counts as large, every output that nobody looks at too."""
    pairs.LARGE_INPUTS = pairs.SMALL_BYTES = runner._LEFT_BYTES = 0
    return Device()
