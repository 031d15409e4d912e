"""Child: KernelBench's own harness on one candidate. Reads {"problem", "candidate"} from stdin, prints a JSON line.

Its package imports clients of language models that judging does not use. Where they are not installed, empty modules
stand in for them.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from importlib.util import find_spec
from types import ModuleType
from typing import Any

UNUSED = ("dotenv", "litellm", "openai", "requests", "datasets", "tqdm", "huggingface_hub", "tomli", "together")
"""Imported by the package, not needed for judging."""


class _Empty(ModuleType):
    """Any name of it is a function that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def stand_in() -> list[str]:
    """Puts empty modules where UNUSED ones are missing; their names."""
    absent = [name for name in UNUSED if find_spec(name) is None]
    sys.modules.update({name: _Empty(name) for name in absent})
    return absent


def main() -> None:
    given = json.load(sys.stdin)
    absent = stand_in()
    harness = importlib.import_module("kernelbench.eval")
    import torch

    torch.zeros(1, device="cuda")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = harness.eval_kernel_against_ref(
            given["problem"], given["candidate"], num_correct_trials=5, num_perf_trials=100, measure_performance=True,
            build_dir=folder, device=torch.device("cuda:0"), backend="triton",
        )  # fmt: skip
        seconds = time.perf_counter() - start
    said = f"compiled {result.compiled}, correct {result.correctness}, runtime {result.runtime} ms"
    print(json.dumps({"seconds": seconds, "said": said, "stand_ins": absent}))


if __name__ == "__main__":
    main()
