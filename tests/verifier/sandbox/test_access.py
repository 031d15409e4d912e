"""Links on the way to granted files."""

from __future__ import annotations

from pathlib import Path

from verifier.sandbox.access import links


def test_links_to_links_are_found_one_by_one(tmp_path: Path) -> None:
    """As toolkits are installed: cuda -> alternatives/cuda -> cuda-13 -> cuda-13.0, and include below that."""
    real = tmp_path / "cuda-13.0" / "targets" / "include"
    real.mkdir(parents=True)
    (tmp_path / "cuda-13.0" / "include").symlink_to("targets/include")
    (tmp_path / "cuda-13").symlink_to("cuda-13.0")
    (tmp_path / "alternatives").mkdir()
    (tmp_path / "alternatives" / "cuda").symlink_to(tmp_path / "cuda-13")
    (tmp_path / "cuda").symlink_to(tmp_path / "alternatives" / "cuda")
    found = [(str(link.relative_to(tmp_path)), target) for link, target in links(tmp_path / "cuda" / "include" / "x")]
    assert found == [
        ("cuda", str(tmp_path / "alternatives" / "cuda")),
        ("alternatives/cuda", str(tmp_path / "cuda-13")),
        ("cuda-13", "cuda-13.0"),
        ("cuda-13.0/include", "targets/include"),
    ]


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert len(list(links(tmp_path / "a"))) == 40
