"""A warm process for the attacks, started while an API key is in the caller's environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifier.sandbox.zygote import Zygote

HERE = Path(__file__).parent
SECRET = "sk-the-key-that-no-job-may-see"


@pytest.fixture(scope="session")
def secret() -> Iterator[str]:
    os.environ["OPENAI_API_KEY"] = SECRET
    yield SECRET
    del os.environ["OPENAI_API_KEY"]


@pytest.fixture(scope="session")
def zygote(secret: str) -> Iterator[Zygote]:
    with Zygote(preload=(), paths=[HERE]) as running:
        yield running


@pytest.fixture
def descendants(zygote: Zygote) -> "Descendants":
    return Descendants()


class Descendants:
    """Processes below this one that were not there at the start of the test."""

    def __init__(self) -> None:
        self.before = self._now()

    def new(self) -> set[int]:
        return self._now() - self.before

    @staticmethod
    def _now() -> set[int]:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                except OSError:
                    continue
        found, size = {os.getpid()}, 0
        while len(found) > size:
            size = len(found)
            found |= {pid for pid, parent in parents.items() if parent in found}
        return found
