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
    parser.add_argument(
        "--target",
        default="auto",
        help="GPU to judge for: auto (the one found here, else h200), a100, h100-pcie, h100-sxm, h200, b200; sm_80, "
        "sm_90a, sm_100 stand for one of them",
    )
    gpus(parser)


def gpus(parser: argparse.ArgumentParser) -> None:
    """Where times are measured."""
    parser.add_argument(
        "--gpus", default="auto", metavar="LIST", help="GPUs to measure on: auto (all), none (estimate), or 0,1"
    )


def fleet(text: str) -> str:
    """Where stages are judged: `local`, `ray`, `ray:auto` or `ray://HOST:PORT`."""
    if text not in ("local", "ray", "ray:auto") and not text.removeprefix("ray://").partition(":")[2].isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is none of local, ray, ray:auto, ray://HOST:PORT")
    return text


def searching(parser: argparse.ArgumentParser) -> None:
    """Of the commands that run a search."""
    parser.add_argument(
        "--fleet",
        type=fleet,
        default="local",
        help="where to judge: local, ray (starts one), ray:auto (this machine's cluster) or ray://HOST:PORT",
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="CPU workers; default the number of cores")
    parser.add_argument("--quiet", action="store_true", help="no live view")


def _at_least(text: str, least: int) -> int:
    if not text.strip().lstrip("+").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return int(text)
