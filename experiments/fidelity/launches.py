"""What each custom launch reads and leaves, as checksums: in a direct run by hooks on Triton, else at the launcher.

Two runs are compared launch by launch. Where every argument that the kernel loads held equal bits before, its stores
must leave equal bits behind; where an argument differed before, something earlier made the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.fidelity.measure import checksums
from verifier.gpu.launch import Launcher
from verifier.gpu.memory import foreign
from verifier.gpu.packing import passed
from verifier.plan.arguments import DescriptorArg, PointerArg
from verifier.plan.schema import Alternative, KernelImage, LaunchStep, Program

Seen = dict[str, Any]
"""One launch: {"kernel": name, "before": {argument: checksums}, "after": {argument: checksums}}; of a replay also
"access": {argument: "load" | "store" | "both" | "none"}."""
Fate = Literal["identical", "downstream", "different", "unmatched"]


class Watch:
    """Records the launches and autotune choices of a direct run while `on`. `device`: where tensors count."""

    def __init__(self, device: str) -> None:
        self.on = False
        self._device = device
        self.launches: list[Seen] = []
        self.choices: list[tuple[str, str]] = []
        """Kernel and configuration of each autotuned launch, in order."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def install(self) -> None:
        """Wraps the two `run` methods that every launch of eager Triton passes through. For good: the process is a
        child that ends with its answer."""
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction

        run, tune = JITFunction.run, Autotuner.run

        def watched_run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.on or kwargs.get("warmup"):
                return run(kernel, *args, **kwargs)
            given = self._tensors({**dict(zip(kernel.arg_names, args, strict=False)), **kwargs})
            seen: Seen = {"kernel": kernel.fn.__name__, "before": _sums(given)}
            made = run(kernel, *args, **kwargs)
            self.launches.append({**seen, "after": _sums(given)})
            return made

        def watched_tune(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            made = tune(tuner, *args, **kwargs)
            if self.on:
                self.choices.append((tuner.base_fn.__name__, str(tuner.best_config)))
            return made

        JITFunction.run, Autotuner.run = watched_run, watched_tune

    def _tensors(self, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        """Device tensors among the arguments, those in tuples and under descriptors too, by the plan's names."""
        found: dict[str, Tensor] = {}
        for name, value in arguments.items():
            if isinstance(value, tuple) and name != "grid":
                found |= self._tensors({f"{name}.{i}": item for i, item in enumerate(value)})
            base = getattr(value, "base", value)
            if isinstance(base, Tensor) and base.device.type == self._device:
                found[name] = base
        return found


def _sums(given: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: checksums(_to_the_end(tensor)) for name, tensor in given.items()}


def _to_the_end(tensor: Tensor) -> Tensor:
    """Bytes from the tensor's first element to the end of its storage: what a pointer reaches."""
    storage = tensor.untyped_storage()
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
    return whole[tensor.storage_offset() * tensor.element_size() :]


class WatchedLauncher:
    """A launcher that notes checksums around each launch of a replay while `on`."""

    def __init__(self, inner: Launcher, program: Program, device: torch.device) -> None:
        self._inner, self._program, self._device = inner, program, device
        self.on = False
        self.launches: list[Seen] = []

    def load(self, image: KernelImage, cubin: bytes) -> Any:
        return self._inner.load(image, cubin)

    def launch(
        self, kernel: Any, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        if not self.on:
            self._inner.launch(kernel, image, launch, addresses, stream)
            return
        regions = self._regions(launch, addresses)
        access = {p.name: p.access for p in image.params if p.name in regions}
        before = {name: checksums(region) for name, region in regions.items()}
        self._inner.launch(kernel, image, launch, addresses, stream)
        after = {name: checksums(region) for name, region in regions.items()}
        self.launches.append({"kernel": image.name, "access": access, "before": before, "after": after})

    def close(self) -> None:
        self._inner.close()

    def _regions(self, launch: Alternative, addresses: Sequence[int]) -> dict[str, Tensor]:
        pairs = zip(passed(launch), addresses, strict=False)
        pointers = [(a, address) for a, address in pairs if isinstance(a, PointerArg | DescriptorArg)]
        sizes = self._program.storages
        return {a.name: foreign(address, sizes[a.storage].bytes - a.offset, self._device) for a, address in pointers}


def fates(direct: Sequence[Seen], replayed: Sequence[Seen]) -> list[Fate]:
    """What became of each launch of the replay."""
    if [s["kernel"] for s in direct] != [s["kernel"] for s in replayed]:
        return ["unmatched"] * len(replayed)
    return [_fate(d, r) for d, r in zip(direct, replayed, strict=True)]


def _fate(direct: Seen, replayed: Seen) -> Fate:
    loads = [n for n, access in replayed["access"].items() if access in ("load", "both")]
    stores = [n for n, access in replayed["access"].items() if access in ("store", "both")]
    if not all(n in direct["before"] for n in (*loads, *stores)):
        return "unmatched"
    if any(direct["before"][n] != replayed["before"][n] for n in loads):
        return "downstream"
    return "identical" if all(direct["after"][n] == replayed["after"][n] for n in stores) else "different"


def choose(program: Program, choices: Sequence[Sequence[str]]) -> tuple[dict[int, int], int]:
    """The plan's alternatives for the configurations that a direct run chose, by position in `forward`, and how many of
    its autotuned launches have no such alternative."""
    tuned = [(i, s) for i, s in enumerate(program.forward) if isinstance(s, LaunchStep) and s.autotuned]
    chosen: dict[int, int] = {}
    for (position, step), (_, config) in zip(tuned, choices, strict=False):
        for ignored in ((), ("num_stages",)):  # configurations that compile to one cubin are one alternative
            fits = [i for i, a in enumerate(step.alternatives) if _same_config(a.config, config, ignored)]
            if fits:
                break
        if fits:
            chosen[position] = fits[0]
    return chosen, len(tuned) - len(chosen)


def _same_config(a: str, b: str, ignored: Sequence[str] = ()) -> bool:
    """Whether two printed configurations agree in all that both versions of Triton print, but for what is ignored."""
    x, y = (dict(part.partition(": ")[::2] for part in text.split(", ")) for text in (a[:500], b[:500]))
    return all(x[name] == y[name] for name in (x.keys() & y.keys()) - set(ignored))
