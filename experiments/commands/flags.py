"""Flags that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number from 1."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """A whole number from 0."""
    return _at_least(text, 0)


def judging(parser: argparse.ArgumentParser) -> None:
    """Of the commands that judge."""
    parser.add_argument("--kernelbench", type=Path, metavar="PATH", help="your checkout of KernelBench")
    parser.add_argument("--target", default="sm_90a", help="GPU architecture to compile for")


def searching(parser: argparse.ArgumentParser) -> None:
    """Of the commands that run a search."""
    parser.add_argument("--workers", type=positive, metavar="N", help="CPU workers; default the number of cores")
    parser.add_argument("--quiet", action="store_true", help="no live view")


def _at_least(text: str, least: int) -> int:
    if not text.strip().lstrip("+").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return int(text)
