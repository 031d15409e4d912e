"""A job that builds native code as Triton's launcher and C++ extensions do. Runs inside the sandbox."""

import ctypes
import os
import socket
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from verifier.sandbox import job

SOURCE = """
#include <Python.h>
#include <stdio.h>
int answer(void) { return PY_MAJOR_VERSION * 14; }
"""


def build(payload: Any, blobs: dict[str, bytes], workdir: Path) -> tuple[Any, dict[str, bytes]]:
    Path("answer.c").write_text(SOURCE)
    include = sysconfig.get_path("include")
    command = f"cc -shared -fPIC -I{include} answer.c -o answer.so"
    subprocess.run(["/bin/sh", "-c", command], check=True, start_new_session=True)
    cached = subprocess.run(["/sbin/ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    return {"answer": ctypes.CDLL("./answer.so").answer(), "libraries": "libc.so.6" in cached}, {}


def echo(payload: Any, blobs: dict[str, bytes], workdir: Path) -> tuple[Any, dict[str, bytes]]:
    """Answers in capitals over the socket that it was passed, for ever."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=job.passed[0])
    while True:
        end.send(end.recv(5).upper())


def name_thread(payload: Any, blobs: dict[str, bytes], workdir: Path) -> tuple[Any, dict[str, bytes]]:
    (thread,) = os.listdir("/proc/self/task")
    name = f"/proc/self/task/{thread}/comm"
    end = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # as the driver opens it
    os.write(end, b"renamed")
    found = {"name": Path(name).read_text().strip()}
    for key, name in (("memory", "/proc/1/mem"), ("oom", "/proc/self/oom_score_adj")):
        try:
            with open(name, "r+b", buffering=0) as file:
                file.write(b"-1")
            found[key] = "written"
        except OSError:
            found[key] = "refused"
    return found, {}
