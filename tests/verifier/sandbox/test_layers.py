"""Each layer missing, as on another kernel: jobs still run, still end, and the gap is told."""

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from verifier.sandbox import confine
from verifier.sandbox.limits import Limits
from verifier.sandbox.zygote import Zygote

HERE = Path(__file__).parent
COMBINATIONS = [
    *([layer] for layer in sorted(confine.LAYERS)),
    ["pid", "mount"],
    ["pid", "mount", "user"],
    sorted(confine.LAYERS),
]


@pytest.mark.parametrize("without", COMBINATIONS, ids="-".join)
def test_jobs_run_and_end_without_a_layer(without: list[str], descendants: Any, tmp_path: Path) -> None:
    with Zygote(preload=(), paths=[HERE], without=without) as zygote:
        result = zygote.run("attacks:honest", 5)
        assert result.outcome == "ok", result.error
        assert set(zygote.gaps) or without == ["user"]
        running = descendants.new()
        late = zygote.run("attacks:endless", None, limits=Limits(wall_seconds=0.3))
        assert late.outcome == "timeout"
        begin = time.monotonic()
        assert zygote.run("attacks:background", None).outcome == "ok"
        assert time.monotonic() - begin < 20
        assert descendants.new() == running
        secret = tmp_path / "secret"
        secret.write_text("secret")
        said = zygote.run("attacks:read", [str(secret)]).value[str(secret)]
        if not {"landlock", "mount"} <= set(without):
            assert said.startswith("refused")
    assert descendants.new() == set()


def attack(zygote: Zygote, job: str, payload: Any, blobs: dict[str, bytes] | None = None) -> dict[str, str]:
    result = zygote.run(f"attacks:{job}", payload, blobs)
    assert result.outcome == "ok", result
    assert isinstance(result.value, dict)
    return result.value


def attack_neighbour(zygote: Zygote, tmp_path: Path) -> dict[str, str]:
    """Every kind of attack, aimed at a process and listeners of this test; what each got."""
    program = {"program": Path("/bin/true").read_bytes()}
    address = f"warpsmith-layers-{os.getpid()}"
    with (
        subprocess.Popen(["sleep", "60"]) as canary,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as path,
    ):
        abstract.bind("\0" + address)
        path.bind(str(tmp_path / "s"))
        for listener in (abstract, path):
            listener.listen()
        places = {"port": tcp.getsockname()[1], "abstract": address, "path": str(tmp_path / "s")}
        got = attack(zygote, "connect", places)
        got |= attack(zygote, "execute", None, program)
        got |= attack(zygote, "list_folders", ["/etc"])
        got |= attack(zygote, "read", ["/etc/passwd"])
        got |= attack(zygote, "inspect_processes", {"pids": [canary.pid], "address": 0, "parent": False})
        target = {"client": canary.pid, "canary": canary.pid, "server": canary.pid, "parent": False}
        got |= attack(zygote, "signals", target)
        canary.kill()
    return got


def test_the_attacks_succeed_where_nothing_stops_them(tmp_path: Path) -> None:
    """The control of `test_attacks.py`: an attack that always fails would show nothing."""
    with Zygote(preload=(), paths=[HERE], without=confine.LAYERS) as zygote:
        got = attack_neighbour(zygote, tmp_path)
    done = {name.split()[0] for name, said in got.items() if said.startswith("done")}
    expected = {"tcp", "udp", "abstract", "path", "netlink", "true", "shell", "own", "memory", "/etc"}
    assert done >= {*expected, "/etc/passwd", "cmdline", "status", "second"}


@pytest.mark.parametrize("without", [["pid"], ["mount"], ["net"], ["pid", "mount", "net"]], ids="-".join)
def test_the_attacks_fail_with_the_layers_that_every_machine_should_have(without: list[str], tmp_path: Path) -> None:
    with Zygote(preload=(), paths=[HERE], without=without) as zygote:
        got = attack_neighbour(zygote, tmp_path)
    assert {name: said for name, said in got.items() if not said.startswith("refused")} == {}


def test_killing_everything_in_reach_spares_the_rest_without_pid_namespaces(descendants: Any) -> None:
    with Zygote(preload=(), paths=[HERE], without=["pid"]) as zygote:
        server = zygote.server_pid
        zygote.run("attacks:kill_everything", None, limits=Limits(wall_seconds=5))
        assert zygote.server_pid == server
        assert zygote.run("attacks:honest", 1).outcome == "ok"
