"""Which GPUs this process may use, and which target fits them. Loads no CUDA: a context in the wrong process would cost
memory and time.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

from verifier.errors import UsageError
from verifier.gpu.nvml import Gpu
from verifier.target import ARCHITECTURES, TARGETS, Target, get_target

DEVICES = Path("/dev")
DEFAULT = "h200"
"""What `auto` stands for where no GPU is found."""


def visible_gpus(devices: Path = DEVICES) -> tuple[str, ...]:
    """Values for CUDA_VISIBLE_DEVICES, one for each NVIDIA GPU: indexes, or what that variable already lists."""
    present = sorted(int(p.name[6:]) for p in devices.glob("nvidia[0-9]*") if p.name[6:].isdigit())
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not present or listed is None:
        return tuple(str(i) for i in range(len(present)))
    names = []
    for name in listed.split(","):
        if not name.strip() or name.strip() == "-1":
            break  # the driver ignores what follows
        names.append(name.strip())
    return tuple(names)


def chosen_gpus(wanted: str) -> tuple[str, ...]:
    """Devices for `auto` (all that are visible), `none`, or a list such as `0,1`. Raises UsageError."""
    visible = visible_gpus()
    if wanted in ("auto", "none"):
        return visible if wanted == "auto" else ()
    names = tuple(name.strip() for name in wanted.split(","))
    unknown = [name for name in names if name not in visible]
    if unknown:
        raise UsageError(f"there is no GPU {unknown[0]!r} here; visible are: {', '.join(visible) or 'none'}")
    return names


class Fit(NamedTuple):
    """A target and the GPU on which its plans run."""

    target: Target
    figures: Target
    """The profile of that GPU: its rates make estimates and advice."""
    warning: str
    """Where the two are not the same device. One sentence."""


def choose_target(wanted: str, gpu: Gpu | None, *, measured: bool) -> Fit:
    """The target for `wanted`, a target's name or `auto`: the profile of `gpu`, else `DEFAULT`. Where the GPU measures
    it must run the target's plans. Raises UsageError.
    """
    near = None if gpu is None else nearest(gpu)
    if wanted == "auto":
        if gpu is not None and near is None and measured:
            raise _misfit("no target fits", gpu)
        target = near or get_target(DEFAULT)
        return Fit(target, target, "")
    target = get_target(wanted)
    if gpu is None or not measured:
        return Fit(target, target, "")
    if near is None or near.arch != target.arch:
        raise _misfit(f"{target.name} is made for {target.arch}, and its plans do not run on", gpu, near)
    if near.name == target.name:
        return Fit(target, target, "")
    warning = f"the target is {target.name} and the GPU is an {gpu.name}: its figures ({near.name}) are used for advice"
    return Fit(target, near, warning)


def nearest(gpu: Gpu) -> Target | None:
    """The profile of a GPU: by its name, else the closest of its architecture by model and memory. None where plans of
    no architecture run on it.
    """
    same = [t for t in TARGETS.values() if t.capability == gpu.capability]

    def strangeness(target: Target) -> tuple[bool, int, float]:
        words = target.name.upper().split("-")
        missing = sum(word not in gpu.name.upper() for word in words)
        return target.device_name != gpu.name, missing, abs(math.log(target.total_memory / max(gpu.memory, 1)))

    return min(same, key=strangeness, default=None)


def _misfit(what: str, gpu: Gpu, near: Target | None = None) -> UsageError:
    step = f"--target {near.name}, or leave --target out" if near else "--gpus none estimates without this GPU"
    known = "" if near else f"; there are targets for {', '.join(ARCHITECTURES)}"
    return UsageError(f"{what} the GPU here, {gpu}{known}", next_step=step)
