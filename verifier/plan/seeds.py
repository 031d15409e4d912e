"""Puts random seeds and generators under watch in the traced process; see `randomness.py`.

A generator for CUDA is one of the host in disguise: it never draws. So are the default generators, by which all seeds
are set. A generator's state may be read, which PyTorch's own code does, but not put back: a plan only knows seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from verifier.plan.randomness import Streams
from verifier.plan.record import Recorder, Untraceable

UNSEEDED = 67280421310721
"""What PyTorch seeds a new generator with."""


def install(recorder: Recorder) -> None:
    """Puts seeds under watch, in this process for good."""
    streams, module, cuda = recorder.streams, cast(Any, torch), cast(Any, torch.cuda)
    module.Generator = _generator_class(recorder)
    host, device = (_default_generator(streams, module.Generator, name) for name in ("cpu", "cuda"))
    module.default_generator = module.random.default_generator = host
    cuda.default_generators = (device,)
    module.manual_seed = module.random.manual_seed = _seeder(device, host)
    cuda.manual_seed = cuda.manual_seed_all = _seeder(device)

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise _no_state(recorder)

    module.set_rng_state = module.random.set_rng_state = refuse
    cuda.set_rng_state = cuda.set_rng_state_all = refuse
    cuda.get_rng_state = lambda *_args: torch.get_rng_state()
    cuda.get_rng_state_all = lambda: [torch.get_rng_state()]
    cuda.seed = cuda.seed_all = lambda: cuda.manual_seed(torch.seed())
    module.random.fork_rng = _fork(recorder)


def _no_state(recorder: Recorder) -> Untraceable:
    recorder.block("rng-state", "the file puts a random generator's state back; a plan only knows seeds")
    return Untraceable("random state")


def _seeder(*generators: torch.Generator) -> Callable[..., torch.Generator]:
    def manual_seed(seed: int) -> torch.Generator:
        return [generator.manual_seed(int(seed)) for generator in generators][-1]

    return manual_seed


def _default_generator(streams: Streams, plain: Any, name: str) -> torch.Generator:
    class Default(plain):  # type: ignore[misc]
        def _start(self, seed: int) -> None:
            streams.default[name] = streams.start(name, seed)

    before = streams.default[name]  # nothing was seeded yet
    made: torch.Generator = Default(name)
    streams.default[name], streams.defaults[made._cdata] = before, name  # type: ignore[attr-defined]
    return made


def _generator_class(recorder: Recorder) -> type:
    streams = recorder.streams

    class Generator(torch._C.Generator):
        _where: torch.device

        def __new__(cls, device: Any = "cpu") -> Generator:
            made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
            made._where = torch.device(device)
            made._start(UNSEEDED)
            return made

        def __init__(self, device: Any = "cpu") -> None: ...

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return self._where

        def manual_seed(self, seed: int) -> Generator:
            super().manual_seed(int(seed))
            self._start(int(seed))
            return self

        def seed(self) -> int:
            chosen = super().seed()
            self._start(chosen)
            return chosen

        def _start(self, seed: int) -> None:
            streams.of_generator[self._cdata] = streams.start(self._where.type, seed)  # type: ignore[attr-defined]

        def set_state(self, _state: Any) -> Any:
            raise _no_state(recorder)

    return Generator


def _fork(recorder: Recorder) -> Callable[..., Any]:
    @contextmanager
    def fork_rng(*_args: object, enabled: bool = True, **_kwargs: object) -> Iterator[None]:
        """The streams go on afterwards where they were, if nothing was drawn from them meanwhile."""
        streams = recorder.streams
        before = dict(streams.default)
        drawn = [streams.draws[n] for n in before.values()]
        yield
        if enabled:
            if drawn != [streams.draws[n] for n in before.values()]:
                raise _no_state(recorder)
            streams.default = before

    return fork_rng
