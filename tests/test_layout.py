"""The five top-level packages keep their plain names, so no installed distribution may take one of them."""

from __future__ import annotations

import importlib.util
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGES = ("agent", "strategies", "tools", "verifier", "experiments")
ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_takes_the_name(package: str) -> None:
    culprits = sorted(set(packages_distributions().get(package, ())) - {"warpsmith"})
    assert not culprits, f"the installed distribution {culprits} also has a top-level package {package!r}: uninstall it"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_name_resolves_to_this_repository(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not importable: run `make install`"
    assert spec.origin is not None, f"{package} has no __init__.py"
    assert Path(spec.origin).resolve() == ROOT / package / "__init__.py", f"{package!r} comes from {spec.origin}"
