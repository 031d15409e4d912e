"""Life and death of the warm process and of its caller."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from verifier.errors import SandboxError
from verifier.sandbox import watch
from verifier.sandbox.limits import Limits
from verifier.sandbox.zygote import Zygote, isolation_gaps

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def children_of(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_until_gone(pids: list[int], seconds: float = 60.0) -> list[int]:
    """Those of `pids` that still run after `seconds`; zombies count as gone."""
    end = time.monotonic() + seconds
    while (alive := [pid for pid in pids if is_running(pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    return alive


def when_busy(server: int, act: Callable[[], object]) -> threading.Thread:
    """Does `act` in a thread when the server has started a job."""

    def watch() -> None:
        while not children_of(server):
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("inner", [True, False])
def test_a_killed_server_is_an_error_now_and_restarted_later(inner: bool) -> None:
    with Zygote(preload=(), paths=[HERE]) as zygote:
        outer = zygote.server_pid
        (server,) = children_of(outer)
        thread = when_busy(server, lambda: os.kill(server if inner else outer, signal.SIGKILL))
        with pytest.raises(SandboxError, match="ended"):
            zygote.run("attacks:asleep", None)
        thread.join()
        assert wait_until_gone([outer, server]) == []
        assert zygote.run("attacks:honest", 1).outcome == "ok"
        assert zygote.server_pid != outer


def test_what_a_killed_server_said_last_is_in_the_error() -> None:
    with Zygote(preload=(), paths=[HERE]) as zygote:
        outer = zygote.server_pid
        (server,) = children_of(outer)
        thread = when_busy(server, lambda: os.kill(outer, signal.SIGKILL))
        with pytest.raises(SandboxError, match="ended while a job was running; exit code -9: it ended without"):
            zygote.run("attacks:asleep", None)
        thread.join()


STARTS_PROGRAMS = """
import os
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_a_look_at_a_job_survives_programs_that_end_meanwhile() -> None:
    """Triton starts the assembler for each kernel; a look that met its end ended the warm process."""
    job = subprocess.Popen([sys.executable, "-c", STARTS_PROGRAMS])
    try:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert watch.used_by_family(job.pid, 0).memory_bytes > 0
    finally:
        job.kill()
        job.wait()


def test_a_job_whose_name_is_no_text_does_not_end_the_server() -> None:
    with Zygote(preload=(), paths=[HERE]) as zygote:
        server = zygote.server_pid
        assert zygote.run("attacks:under_a_strange_name", None).value.startswith("ff29205320")
        assert zygote.server_pid == server


def test_closing_ends_running_jobs() -> None:
    zygote = Zygote(preload=(), paths=[HERE])
    zygote.start()
    outer = zygote.server_pid
    (server,) = children_of(outer)
    thread = when_busy(server, zygote.close)
    with pytest.raises(SandboxError):
        zygote.run("attacks:asleep", None)
    thread.join()
    assert wait_until_gone([outer, server]) == []


CALLER = """
import sys, threading, time
from pathlib import Path
from verifier.sandbox.zygote import Zygote
zygote = Zygote(preload=(), paths=[Path(sys.argv[1])])
zygote.run("attacks:background", None)
threading.Thread(target=zygote.run, args=("attacks:asleep", None), daemon=True).start()
print(zygote.server_pid, flush=True)
time.sleep(600)
"""


def test_when_the_caller_is_killed_everything_ends() -> None:
    command = [sys.executable, "-c", CALLER, str(HERE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as caller:
        assert caller.stdout is not None
        outer = int(caller.stdout.readline())
        (server,) = children_of(outer)
        while not (jobs := children_of(server)):
            time.sleep(0.02)
        caller.kill()
        assert wait_until_gone([outer, server, *jobs]) == []


def test_a_server_started_by_a_thread_outlives_the_thread() -> None:
    zygote = Zygote(preload=(), paths=[HERE])
    thread = threading.Thread(target=zygote.start)
    thread.start()
    thread.join()
    first = zygote.server_pid
    time.sleep(0.1)
    assert zygote.run("attacks:honest", 1).outcome == "ok"
    assert zygote.server_pid == first
    zygote.close()


def test_a_preload_that_fails_is_named() -> None:
    with pytest.raises(SandboxError, match="ModuleNotFoundError: No module named 'no_such_module'"):
        Zygote(preload=["no_such_module"]).start()


def test_requests_that_are_no_json_are_the_callers_fault(zygote: Zygote) -> None:
    with pytest.raises(TypeError):
        zygote.run("attacks:honest", object())
    with pytest.raises(ValueError, match=r"package\.module:function"):
        zygote.run("attacks.honest", None)


def test_a_job_that_does_not_exist_is_an_error_result(zygote: Zygote) -> None:
    assert zygote.run("attacks:nothing_such", None).error.startswith("AttributeError")
    assert zygote.run("no_such_module:job", None).error.startswith("ModuleNotFoundError")


def test_environ_reaches_jobs_and_only_what_was_given(secret: str) -> None:
    with Zygote(preload=(), paths=[HERE], environ={"TRITON_INTERPRET": "1"}) as zygote:
        variables = zygote.run("attacks:environment", None).value[0]
        assert variables["TRITON_INTERPRET"] == "1"
        assert "OPENAI_API_KEY" not in variables


def test_trusted_jobs_are_not_confined_but_limited(zygote: Zygote, tmp_path: Path) -> None:
    """The control of the attacks: without confinement the same attacks succeed."""
    (tmp_path / "secret").write_text("secret")
    read = zygote.run("attacks:read", [str(tmp_path / "secret"), "/etc/passwd"], confined=False)
    assert all(said.startswith("done") for said in read.value.values())
    targets = {"paths": [str(tmp_path / "w")], "own": False}
    written = zygote.run("attacks:write_outside", targets, confined=False)
    assert written.value[str(tmp_path / "w")].startswith("done")
    program = {"program": Path("/bin/true").read_bytes()}
    executed = zygote.run("attacks:execute", None, program, confined=False).value
    assert executed["true"] == executed["own"] == "done: 0"
    late = zygote.run("attacks:asleep", None, limits=Limits(wall_seconds=0.3), confined=False)
    assert late.outcome == "timeout"


def test_work_folders_are_removed(zygote: Zygote) -> None:
    folder = zygote.run("attacks:environment", None, confined=False).value[1]
    assert not Path(folder).exists()


def test_isolation_gaps_are_sentences() -> None:
    assert all(gap.endswith(".") for gap in isolation_gaps())


def test_an_ordinary_user_or_root_gets_an_answer_in_milliseconds(zygote: Zygote) -> None:
    assert min(zygote.run("verifier.sandbox.job:nothing", None).seconds for _ in range(20)) < 0.2


KERNEL = """
import triton
import triton.language as tl


@triton.jit
def add(x, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets, mask=offsets < n) + 1, mask=offsets < n)
"""


def test_triton_compiles_inside_the_sandbox() -> None:
    with Zygote(preload=["torch", "triton"], paths=[HERE]) as zygote:
        assert [gap for gap in zygote.gaps if "threads" in gap] == []
        result = zygote.run("attacks:compile_kernel", KERNEL)
        assert result.outcome == "ok", result.error + result.output
        assert "REG:" in result.value
        assert result.blobs["cubin"].startswith(b"\x7fELF")
        assert json.dumps(result.value)
